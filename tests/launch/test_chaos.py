"""The real actor and the real learner, killed at random moments under `dynatok launch`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from learner.online.checkpoint import latest
from protocol.run.trace import account
from tests.launch.running import gone, launched, nothing_lost, process_of, wait_for_step

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

FAST = (
    *("--actor.evaluation.enabled", "false", "--time_limit", "1200"),
    *("--learner.max_seconds", "0", "--learner.trajectories_per_step", "4"),
    *("--learner.training.save_steps", "10"),
)


def back_after(log: Path, since: int, killed: float) -> tuple[float, float]:
    """Seconds from the kill until the actor serves again, and what its engine took of them."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        text = log.read_text()[since:]
        engine = re.search(r"engine ready after ([\d.]+) s", text)
        if engine is not None and "serving weights" in text:
            return time.monotonic() - killed, float(engine.group(1))
        time.sleep(0.1)
    raise AssertionError(f"the actor is not back within 240 s: {log.read_text()[since:][-2000:]}")


def chaos(folder: Path, process: subprocess.Popen[str], kills: int, seed: int) -> Path:
    """Kill one of the two, see that it comes back, and that both go on; again and again."""
    draw = random.Random(seed)
    run = wait_for_step(folder, process, 2)
    for _ in range(kills):
        time.sleep(draw.uniform(0.0, 3.0))
        name = draw.choice(("actor", "learner"))
        log = run / "logs" / f"{name}.log"
        since, killed = log.stat().st_size, time.monotonic()
        process_of(process, run, name).send_signal(signal.SIGKILL)
        if name == "actor":
            seconds, engine = back_after(log, since, killed)
            print(f"actor killed: serves again after {seconds:.1f} s, engine {engine:.1f} s")
            assert seconds - engine <= 15
        trained = len(account(run).trained)
        deadline = time.monotonic() + 120
        while len(account(run).trained) == trained or not process_of(process, run, name):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"no step after {name} was killed"
            time.sleep(0.2)
        if name == "learner":
            print(f"learner killed: trains again after {time.monotonic() - killed:.1f} s")
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(10, 300)])
def test_ten_kills_lose_nothing(tmp_path: Path, kills: int, steps: int) -> None:
    arguments = (*FAST, "--restarts", "20", "--learner.training.max_steps", str(steps))
    with launched(tmp_path, *arguments) as process:
        run = chaos(tmp_path, process, kills, seed=int(os.environ.get("CHAOS_SEED", "5")))
        out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert result["learner_steps"] == steps
    assert result["audit_mismatches"] == 0
    assert sum(result["crashes"].values()) == kills
    assert len(nothing_lost(run).trained) == 4 * steps


def test_a_killed_actor_and_a_killed_learner_come_back(tmp_path: Path) -> None:
    """And a run that was stopped goes on with `--resume`."""
    with launched(tmp_path, *FAST, "--learner.training.max_steps", "100000") as process:
        run = wait_for_step(tmp_path, process, 12)
        for name in ("actor", "learner"):
            process_of(process, run, name).send_signal(signal.SIGKILL)
            trained = len(account(run).trained)
            deadline = time.monotonic() + 120
            time.sleep(3)
            while len(account(run).trained) <= trained:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        family = [process_of(process, run, name) for name in ("actor", "learner")]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert not gone(family, 5)
    assert f"dynatok launch --resume {run}" in errors
    assert "actor was killed by SIGKILL; starting it again" in errors
    last = latest(run / "checkpoints")
    assert last is not None
    steps = last.state.step + 6
    more = ("--resume", str(run), "--learner.training.max_steps", str(steps))
    with launched(None, *more) as process:
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])["learner_steps"] == steps
    nothing_lost(run)


@pytest.mark.slow
def test_actors_join_and_leave_at_any_time(tmp_path: Path) -> None:
    """Two from the start, a third one started by hand, which leaves again."""
    many = ("--actors", "2", "--actor.sessions", "8", "--learner.training.max_steps", "100000")

    def trained_of(run: Path) -> Counter[str]:
        return Counter(name.partition(".")[0] for name in account(run).trained)

    with launched(tmp_path, *FAST, *many) as process:
        run = wait_for_step(tmp_path, process, 2)
        command = [sys.executable, "-m", "launch.cli", "actor", str(run / "actor.yaml")]
        late = subprocess.Popen([*command, "--name", "late", "--seed", "99"])
        try:
            deadline = time.monotonic() + 240
            while not all(trained_of(run)[name] > 20 for name in ("actor", "actor-1", "late")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, trained_of(run)
                time.sleep(0.5)
            late.terminate()
            assert late.wait(20) == 0
        finally:
            late.kill()
            late.wait()
        before = trained_of(run)
        while sum(trained_of(run).values()) < sum(before.values()) + 40:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert account(run).twice == []
    said = (run / "logs" / "learner.log").read_text()
    assert "actor late said good-bye: stopped by SIGTERM" in said
