"""A checkpoint: the trainer's own, and beside it which trajectories it has consumed.

The trainer writes model, optimizer, scheduler, random states and step into `checkpoint-STEP`.
When all of that is on disk, `stream.json` is added to it: offsets into the inbox's journal,
the cursors of the actors' edit scripts, the weight version, and counters. A folder without it is
a checkpoint that was never finished, and is removed at the next start.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from protocol.delivery.delivery import Consumed
from protocol.delivery.received import Received
from protocol.wire.messages import Offsets, TrajectoryMessage

FILE: Final = "stream.json"
_PREFIX: Final = "checkpoint-"
_VERSION: Final = "weights_version"


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """What had been consumed when the checkpoint was made."""

    step: int
    consumed: Offsets
    """Records of the inbox's journal."""
    tasks: dict[str, Offsets]
    """Actor -> tasks of its edit script whose trajectories were consumed."""
    seconds: float = 0.0
    """Time spent training, from the first batch on."""
    counts: dict[str, int] = {}
    """Counters of the run so far."""
    worst_gap: tuple[int, float, float, int] | None = None
    """The largest `logprob_gap` so far: version, mean, largest, tokens."""
    ranks: int = 1
    """Processes that the optimizer's state is spread over."""


class Checkpoint(NamedTuple):
    """A complete one on disk."""

    path: Path
    state: StreamState


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in a folder. Incomplete ones are removed.

    Raises ValueError where the newest is complete but cannot be read: resuming from an older one
    would throw its training away.
    """
    newest: Checkpoint | None = None
    unreadable: dict[int, str] = {}
    for path in folder.glob(f"{_PREFIX}*"):
        number = path.name.removeprefix(_PREFIX)
        if not number.isdecimal() or not path.is_dir():
            continue
        try:
            state = msgspec.json.decode((path / FILE).read_bytes(), type=StreamState)
        except FileNotFoundError:
            shutil.rmtree(path, ignore_errors=True)
            continue
        except (OSError, msgspec.MsgspecError) as error:
            unreadable[int(number)] = f"{path / FILE}: {error}"
            continue
        if newest is None or state.step > newest.state.step:
            newest = Checkpoint(path, state)
    for step, problem in unreadable.items():
        if newest is None or step > newest.state.step:
            other = "begin anew" if newest is None else f"resume from step {newest.state.step}"
            raise ValueError(
                f"the checkpoint of step {step} is complete, but cannot be read ({problem}); make "
                f"it readable (the release that wrote it reads it), or move it away to {other}"
            )
    return newest


def complete(path: Path, state: StreamState) -> None:
    """Bring everything in the folder to disk, then say that it is complete."""
    for file in path.rglob("*"):
        if file.is_file():
            _sync(file)
    partial = path / f".{FILE}"
    partial.write_bytes(msgspec.json.encode(state))
    _sync(partial)
    partial.replace(path / FILE)
    _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Progress:
    """What is done with, in this process and those before it. Thread-safe."""

    def __init__(self, state: StreamState | None = None) -> None:
        self._lock = threading.Lock()
        consumed = Offsets() if state is None else state.consumed
        self.consumed = Consumed(consumed.low, consumed.beyond)
        self._tasks: dict[str, Consumed] = {}
        for actor, tasks in ({} if state is None else state.tasks).items():
            self._tasks[actor] = Consumed(tasks.low, tasks.beyond)

    def done(self, event: Received) -> None:
        """A trajectory is in the batch that is about to be trained on, or was dropped."""
        with self._lock:
            if event.record is not None:
                self.consumed.add(event.record)
            if isinstance(event.message, TrajectoryMessage):
                tasks = self._tasks.setdefault(event.actor, Consumed())
                tasks.add_all(Offsets(0, event.message.tasks))

    def offsets(self) -> tuple[Offsets, dict[str, Offsets]]:
        """Records and, by actor, tasks that are done with."""
        with self._lock:
            return self.consumed.state(), {a: one.state() for a, one in self._tasks.items()}


class CheckpointCallback(TrainerCallback):
    """Completes what the trainer has just saved. `saved` may then delete what it includes.

    `meet`: waits until every rank has written its files. On ranks that are not the first, that is
    all.
    """

    def __init__(
        self,
        state: Callable[[int], StreamState],
        saved: Callable[[StreamState], None],
        meet: Callable[[], None] = lambda: None,
        *,
        first: bool = True,
    ) -> None:
        self._first = first
        self._state = state
        self._saved = saved
        self._meet = meet

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The trainer's own files are written, by the training thread, between two steps."""
        self._meet()
        if not self._first:
            return
        assert args.output_dir is not None
        now = self._state(state.global_step)
        complete(Path(args.output_dir) / f"{_PREFIX}{state.global_step}", now)
        self._saved(now)


class VersionFile:
    """The highest weight version that may ever have been announced: none is used twice."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _VERSION

    def read(self) -> int:
        """The version; -1: none yet. Raises ValueError for a file that cannot be read."""
        try:
            return int(self._path.read_text())
        except FileNotFoundError:
            return -1
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self._path} cannot be read ({error}): write the newest version that actors were "
                "told of into it (learner.json: weights_published)"
            ) from error

    def write(self, version: int) -> None:
        """Before it is announced."""
        partial = self._path.with_name(f".{_VERSION}")
        partial.write_text(str(version))
        _sync(partial)
        partial.replace(self._path)
