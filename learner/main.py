"""The learner process: waits for actors, trains on what they send, publishes weights.

`run` returns the exit code: 0 where training reached its end or was told to stop, 1 where it
crashed (restarted, it resumes from its last checkpoint), 2 where the configuration is wrong,
3 where the run must not continue. Its last line on stderr says why.

Threads: this one trains. The channel's thread answers the actors, so nobody looks dead during a
long step; the inbox's thread audits what came. They meet in `Stream`. With several ranks, each is
a process; this one then is their agent, and computes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from learner.config import LearnerConfig
from learner.environment import local_ranks, set_environment
from learner.meeting import Nodes, end_of_rank_0, nodes, rank_0_ended
from learner.online.stream import LearnerFailed
from protocol.run.grace import end_within_grace

if TYPE_CHECKING:
    from learner.online.learner import Learner


def run(config: LearnerConfig) -> int:
    """Train until `training.max_steps`, a signal, or a failure."""
    return run_first(config) if config.ranks == 1 else _run_group(config)


def run_first(config: LearnerConfig) -> int:
    """As rank 0, or as the only one."""
    set_environment(bool(config.deepspeed), config.threads, processes=1 + local_ranks())
    learner: Learner | None = None
    over = threading.Event()
    code, last_words = 0, ""
    try:
        from learner.online.learner import (
            Learner,  # imports torch: only after the environment is set
        )

        learner = Learner(config)
        _obey_signals(learner, over)
        learner.train()
    except LearnerFailed as error:
        code, last_words = 3, str(error)
    except ValueError as error:
        code, last_words = 2 if learner is None else 1, str(error)
    except Exception as error:  # a bug, or a library's: its trace is for the log
        traceback.print_exc()
        code, last_words = 1, f"{type(error).__name__}: {error}"
    finally:
        if learner is not None:
            learner.close(failure=last_words)
        over.set()
    if last_words:
        _say(" ".join(last_words.split()))
    return code


def _obey_signals(learner: Learner, over: threading.Event) -> None:
    """End after the current step, with a checkpoint, or, where that takes too long, at once.

    SIGUSR1 asks for a checkpoint alone. Where there are more ranks, SIGTERM is their agent's word
    that one of them has died: a checkpoint cannot be written any more.
    """

    def close() -> None:
        learner.close(failure="a signal came while it could not be obeyed")

    def stop(number: int, _frame: object) -> None:
        learner.stop(signal.Signals(number).name)
        end_within_grace(128 + number, over, close, learner.config.stop_grace)

    def give_up(number: int, _frame: object) -> None:
        learner.stream.crash(RuntimeError("another rank has ended"))
        end_within_grace(1, over, close, 1.0)

    def save(number: int, _frame: object) -> None:
        learner.save()

    signal.signal(signal.SIGTERM, stop if learner.config.ranks == 1 else give_up)
    signal.signal(signal.SIGINT, stop)
    # Within a step of SLURM it is all that srun passes on, and asks for the end.
    signal.signal(signal.SIGUSR1, stop if "SLURM_STEP_ID" in os.environ else save)


def _run_group(config: LearnerConfig) -> int:
    """Start the ranks, and wait for their end. The last line on stderr says what ended them."""
    from learner.ranks import run_ranks  # imports torch

    where = nodes()
    ranks, rest = divmod(config.ranks, where.count)
    if rest:
        _say(f"learner.ranks is {config.ranks}; write a multiple of its {where.count} nodes")
        return 2
    set_environment(bool(config.deepspeed), config.threads, processes=1 + ranks)
    run_dir, interface = Path(config.run_dir), config.protocol.interface
    if interface and where.count > 1:  # what ranks tell each other
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dynatok-learner-") as scratch:
        path = Path(scratch) / "learner.json"
        path.write_bytes(msgspec.json.encode(config))
        try:
            failed, _ = run_ranks(ranks, "learner.online.rank", path, run_dir, where, interface)
        except (TimeoutError, ValueError) as error:
            _say(str(error))
            return 2 if isinstance(error, ValueError) else 1
    return _end_of(failed, run_dir, where)


def _end_of(failed: Mapping[int, int], run_dir: Path, where: Nodes) -> int:
    """The exit code, once it is said why."""
    from learner.ranks import FINAL, cause_of, log_of

    cause, code = cause_of(failed) if failed else (0, 0)
    told = code if code in (0, *FINAL) else 1
    if where.index == 0:
        rank_0_ended(run_dir, where, told)
    if not failed:
        return 0
    if where.index and end_of_rank_0(run_dir, where) in FINAL and code not in FINAL:
        return told  # a consequence: rank 0 has said why, and the last word is its own
    how = f"exited with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    words = f"rank {cause} {how}; its log: {log_of(run_dir, cause)}"
    if cause and code in FINAL:
        lines = log_of(run_dir, cause).read_text(errors="replace").splitlines()
        words = f"rank {cause}: {lines[-1] if lines else ''}"
    if cause or code < 0:  # rank 0 has said it itself
        _say(words)
    return told


def _say(words: str) -> None:
    print(f"learner: {words}", file=sys.stderr, flush=True)
