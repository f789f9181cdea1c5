"""Runs started and stopped as a person does it: `dynatok launch` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from learner.online.checkpoint import latest
from protocol.delivery.delivery import Consumed
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.run.trace import FILE as TRACES
from protocol.run.trace import Account, account, trace_of
from protocol.wire.codec import decode_actor
from protocol.wire.envelope import unseal
from protocol.wire.messages import TrajectoryMessage
from tests.protocol.peers import read

CONFIG = "launch/configs/tiny.yaml"


@contextlib.contextmanager
def launched(
    folder: Path | None, *arguments: str, errors: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """`dynatok launch` in a process of its own; ended with everything it started.

    A pipe holds what it says in minutes; for a longer run, `errors` is a file.
    """
    new = () if folder is None else (CONFIG, "--dir", str(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", *new, *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    family: list[psutil.Process] = []
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid)]
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate(timeout=30)


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> Path:
    """The run folder, once the learner has made `step` steps."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        for metrics in folder.glob("*/metrics.jsonl"):
            rows = [json.loads(line) for line in metrics.read_text().splitlines()]
            if any(row["process"] == "learner" and (row["step"] or 0) >= step for row in rows):
                return metrics.parent
        time.sleep(0.2)
    raise AssertionError(f"no step {step} within 240 s")


def gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Which of them still run after that long. A zombie is gone."""
    end = time.monotonic() + seconds
    while True:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def process_of(
    launcher: subprocess.Popen[str], run: Path, name: str, wait: float = 30.0
) -> psutil.Process:
    """The running process that was started from `RUN/NAME.yaml`, waiting for it for a while."""
    end = time.monotonic() + wait
    while True:
        for one in psutil.Process(launcher.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if str(run / f"{name}.yaml") in one.cmdline():
                    return one
        assert time.monotonic() < end, f"{name} is not running"
        time.sleep(0.05)


def waiting(run: Path) -> set[str]:
    """Trace ids that the learner of a run that has ended holds and has not trained on."""
    last = latest(run / "checkpoints")
    assert last is not None
    consumed = last.state.consumed
    inbox = JournaledStore(run / "journal" / "learner", run.name)
    found = set()
    for event in inbox.replay(Consumed(consumed.low, consumed.beyond)):
        assert isinstance(event.message, TrajectoryMessage)
        found.add(trace_of(event.message.trajectory))
    assert inbox.missing == 0
    inbox.close()
    return found


def kept(run: Path) -> set[str]:
    """Trace ids of what the actors' journals still hold: some of it the learner has, too."""
    found = set()
    for folder in (run / "journal").iterdir():
        if folder.name == "learner":
            continue
        outbox = JournaledOutbox(folder, run.name, folder.name)
        for _, _, frame in outbox.frames():
            message = decode_actor(unseal(frame, run.name, len(frame)).payload)
            if isinstance(message, TrajectoryMessage):
                found.add(trace_of(message.trajectory))
        outbox.close()
    return found


def steps(run: Path) -> int:
    """Optimizer steps so far, those after a checkpoint counted once."""
    return max([0, *account(run).trained.values()]) if (run / TRACES).exists() else 0


def nothing_lost(run: Path) -> Account:
    """What became of every trajectory of a run that has ended: none was lost, none was trained on
    twice. With the learner alone: an actor that ended well has handed over all that it had."""
    found = account(run)
    waits = found.open & waiting(run)
    lost = found.open - waits
    if lost:
        print(f"of what is lost, {len(lost & kept(run))} are in an actor's journal")
    print(
        f"sent {len(found.sent)}: trained {len(found.trained)}, dropped {found.causes()}, waiting "
        f"{len(waits)}, lost {len(lost)}, twice {len(found.twice)}"
    )
    assert found.twice == []
    assert lost == set()
    return found


def sent_of(run: Path, name: str, what: str = "id") -> list[Any]:
    """Of each trajectory that an actor without an engine (`tests.protocol.peers`) has sent."""
    if not (run / f"{name}.jsonl").exists():
        return []
    return [event[what] for event in read(run, name) if event["event"] == "sent"]


def all_came_once(run: Path, names: Sequence[str]) -> None:
    """What actors without engines have sent has come to their learner: all of it, and once."""
    sent = {one for name in names for one in sent_of(run, name)}
    got = [event["id"] for event in read(run, "learner") if event["event"] == "got"]
    print(f"{len(sent)} sent, {len(sent - set(got))} lost, {len(got) - len(set(got))} twice")
    assert set(got) == sent
    assert len(got) == len(set(got))
