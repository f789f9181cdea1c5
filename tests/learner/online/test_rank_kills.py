"""Ranks of a learner that are killed: nothing is lost, and nothing is trained on twice."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from launch import environment
from launch.engines.local import process_argv
from launch.supervisor import Command, Outcome, supervise
from learner.config import LearnerConfig
from protocol.config import ProtocolConfig
from protocol.run.json_files import read_json
from protocol.run.trace import FILE
from tests.launch.running import nothing_lost

PER_STEP = 8
RANKS = 2


class Quiet:
    """A display that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Kept."""
        self.said.append(text)

    def close(self) -> None:
        """Nothing."""


class Killer:
    """Kills the ranks in turn, each at a random moment: while they start, or while they train."""

    def __init__(self, run: Path, kills: int, seed: int) -> None:
        self._run = run
        self._kills = kills
        self._draw = random.Random(seed)
        self._over: set[int] = set()
        """Ranks of groups that have ended."""
        self.killed: Counter[int] = Counter()
        """By rank."""
        self.at: list[str] = []
        """What the run was doing, of each kill."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _work(self) -> None:
        for number in range(self._kills):
            ranks = self._group()
            trained = self._steps()
            if self._draw.random() < 0.3:
                moment = self._draw.uniform(0, 8)
                self._stop.wait(moment)
                self.at.append(f"{moment:.1f} s after its start")
            else:
                more = self._draw.randint(1, 6)
                while self._steps() < trained + more and not self._stop.wait(0.01):
                    pass
                self._stop.wait(self._draw.uniform(0, 0.2))
                self.at.append(f"after {more} steps")
            if self._stop.is_set():
                return
            victim = number % RANKS
            ranks[victim].kill()
            self.killed[victim] += 1
            psutil.wait_procs(list(ranks.values()), 30)
            self._over |= {one.pid for one in ranks.values()}

    def _group(self) -> dict[int, psutil.Process]:
        """The ranks that are running, once all of them are."""
        while not self._stop.wait(0.02):
            found = dict(_ranks(self._over))
            if len(found) == RANKS:
                return found
        return {}

    def _steps(self) -> int:
        """Steps that were begun, those of ended groups included."""
        with contextlib.suppress(FileNotFoundError):
            return (self._run / FILE).read_bytes().count(b'"event":"trained"')
        return 0


def _ranks(but: set[int]) -> Iterator[tuple[int, psutil.Process]]:
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, KeyError):
            if one.pid not in but and "learner.ranks" in one.cmdline():
                yield int(one.environ()["RANK"]), one


def run_and_kill(
    run: Path, model: Path, endpoint: str, fake_actor: Any, kills: int, steps: int, seed: int
) -> tuple[Outcome, Killer, list[str]]:
    """A run of `steps` steps, started again by the supervisor after each kill."""
    settings = LearnerConfig(
        run_dir=str(run),
        run_id=run.name,
        model=str(model),
        protocol=ProtocolConfig(endpoint=endpoint, credits=32),
        ranks=RANKS,
        deepspeed={"zero_optimization": {"stage": 2}},
        training={"max_steps": steps, "learning_rate": 1e-3, "save_steps": 3},
        trajectories_per_step=PER_STEP,
        publish_every=2,
        max_policy_lag=100_000,
        threads=1,
        finish_deadline=60.0,
    )
    run.mkdir()
    (run / "learner.yaml").write_bytes(msgspec.json.encode(settings))
    learner = Command(
        "learner",
        process_argv(run, "learner", "learner"),
        environment.for_child("learner", processes=1 + RANKS),
    )
    display = Quiet()
    with (
        fake_actor(endpoint, settings.run_id, model, run_dir=run) as actor,
        Killer(run, kills, seed) as killer,
    ):
        outcome = supervise(run, [learner], display, restarts=2 * kills, time_limit=1200)
        actor.join()
    assert actor.error is None
    return outcome, killer, display.said


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("kills", "steps"),
    [
        pytest.param(2, 20, marks=pytest.mark.engine),
        pytest.param(10, 90, marks=pytest.mark.slow),
    ],
)
def test_killed_ranks_lose_nothing_and_train_nothing_twice(
    tmp_path: Path, model_dir: Path, endpoint: str, fake_actor: Any, kills: int, steps: int
) -> None:
    run = tmp_path / f"killed-{os.getpid()}-{time.time_ns()}"
    seed = int(os.environ.get("CHAOS_SEED", "3"))
    outcome, killer, said = run_and_kill(
        run, model_dir, endpoint, fake_actor, kills, steps, seed=seed
    )
    log = (run / "logs" / "learner.log").read_text()
    assert outcome.status == "finished", (outcome.message, log[-3000:])
    assert killer.killed == dict.fromkeys(range(RANKS), kills // RANKS)
    assert read_json(run / "result.json")["crashes"] == {"learner": kills}, said
    print(f"killed {dict(killer.killed)}, {', '.join(killer.at)}; {outcome.seconds:.0f} s")
    found = nothing_lost(run)
    assert len(found.trained) == PER_STEP * steps
    assert found.causes().keys() <= {"after_finish"}
    assert read_json(run / "learner.json")["learner_steps"] == steps
