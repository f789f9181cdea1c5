"""An actor process ends when it is told to, and leaves nothing behind even when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# A script with a main guard, as vLLM starts its processes by `spawn`. Nobody listens at the port.
SCRIPT = """
import sys
from actor.config import ActorConfig
from actor.main import run
from protocol.config import ProtocolConfig

if __name__ == "__main__":
    protocol = ProtocolConfig(endpoint="tcp://127.0.0.1:9", connect_seconds=100)
    sys.exit(run(ActorConfig(run_dir={run_dir!r}, run_id="t", model={model!r}, protocol=protocol)))
"""


@contextmanager
def actor(model: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A running actor and its log."""
    script, log = folder / "actor_process.py", folder / "log"
    script.write_text(SCRIPT.format(run_dir=str(folder / "run"), model=str(model)))
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, str(script)], stdout=out, stderr=out)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def children(pid: int) -> set[int]:
    """All descendants of a process."""
    return alive({one.pid for one in psutil.Process(pid).children(recursive=True)})


def alive(pids: set[int]) -> set[int]:
    out = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                out.add(pid)
    return out


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_sigterm_while_the_engine_starts(random_model: Path, tmp_path: Path) -> None:
    with actor(random_model, tmp_path) as (process, log):
        assert wait_until(lambda: children(process.pid), 120), log.read_text()
        family = children(process.pid)
        process.terminate()
        assert process.wait(timeout=8) == 0, log.read_text()  # 4 s, on a busy machine
        assert wait_until(lambda: not alive(family), 3)


def test_a_killed_actor_leaves_no_engine_behind(random_model: Path, tmp_path: Path) -> None:
    with actor(random_model, tmp_path) as (process, log):
        assert wait_until(lambda: b"engine ready" in log.read_bytes(), 240), log.read_text()
        family = children(process.pid)
        assert family
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_until(lambda: not alive(family), 5), alive(family)
