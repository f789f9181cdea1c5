"""Runs started and stopped as a person does it: `dynatok launch` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from learner.online.checkpoint import latest
from protocol.delivery.delivery import Consumed
from protocol.delivery.durable import JournaledStore
from protocol.run.trace import Account, account, trace_of
from protocol.wire.messages import TrajectoryMessage

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


def nothing_lost(run: Path) -> Account:
    """What became of every trajectory of a run: none was lost, none was trained on twice."""
    found = account(run)
    waits = found.open & waiting(run)
    print(
        f"sent {len(found.sent)}: trained {len(found.trained)}, dropped {found.causes()}, waiting "
        f"{len(waits)}, lost {len(found.open - waits)}, twice {len(found.twice)}"
    )
    assert found.twice == []
    assert found.open - waits == set()
    return found
