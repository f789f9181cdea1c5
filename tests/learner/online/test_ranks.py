"""One recorded journal, trained on by one rank and by several: the same weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynatok_online.trajectory import Trajectory
from learner.config import LearnerConfig
from protocol.config import ProtocolConfig

STEPS, PER_STEP = 20, 8
SCRIPT = (
    "import sys, msgspec; from learner.config import LearnerConfig; "
    "from learner.main import run; "
    "sys.exit(run(msgspec.json.decode(sys.argv[1], type=LearnerConfig)))"
)
ALLOWED = 5e-6
"""Relative difference of a tensor."""


def config(run: Path, model: Path, run_id: str, **change: Any) -> LearnerConfig:
    training = {"max_steps": STEPS, "learning_rate": 1e-3, "save_strategy": "no"}
    return LearnerConfig(
        **{
            "run_dir": str(run),
            "run_id": run_id,
            "model": str(model),
            "protocol": ProtocolConfig(endpoint="tcp://127.0.0.1:0"),
            "deepspeed": {},
            "trajectories_per_step": PER_STEP,
            "publish_every": 5,
            "max_policy_lag": 1000,
            # Scored by all ranks between backward and step, which must change nothing.
            "logprob_gap_trajectories": 2,
            "logprob_gap_threshold": 100.0,
            "prometheus_port": -1,
            "threads": 1,
            "batch_deadline": 60.0,
            "finish_deadline": 0.5,
            **change,
            "training": training | change.get("training", {}),
        }
    )


def learn(settings: LearnerConfig) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, msgspec.json.encode(settings)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[Path, str]:
    """The journal of a learner that never trained: what an actor sent, and the run's name."""
    from tests.learner.conftest import make_trajectory

    made = (
        make_trajectory(f"t{number}", seed=number, states=1 + number % 3)
        for number in range(STEPS * PER_STEP)
    )
    return recorded(tmp_path_factory.mktemp("recorded"), made)


def recorded(folder: Path, trajectories: Iterable[Trajectory]) -> tuple[Path, str]:
    """A journal of `trajectories`, and the run's name."""
    from protocol.delivery.durable import JournaledStore
    from protocol.wire.codec import encode
    from protocol.wire.envelope import Sealer
    from protocol.wire.messages import TrajectoryMessage

    run_id = f"ranks-{time.time_ns()}"
    store = JournaledStore(folder / "journal" / "learner", run_id)
    sealer = Sealer(run_id, "actor-0")
    for number, one in enumerate(trajectories, 1):
        message = TrajectoryMessage(one)
        store.append(sealer.seal(encode(message), epoch=1, sequence=number))
    store.commit()
    store.close()
    return folder / "journal", run_id


def weights(
    tmp_path: Path,
    model: Path,
    journal: tuple[Path, str],
    steps: int = STEPS,
    **change: Any,
) -> Any:
    """What a learner of these settings makes of the journal, in so many steps."""
    from safetensors.torch import load_file

    run = tmp_path / f"run-{time.time_ns()}"
    run.mkdir()
    shutil.copytree(journal[0], run / "journal")
    code, said = learn(config(run, model, journal[1], **change))
    # Nobody is there to say good-bye; until then, all has gone well.
    assert code == 3, said
    assert "no good-bye" in said.splitlines()[-1], said
    summary = json.loads((run / "learner.json").read_text())
    assert summary["learner_steps"] == steps
    assert summary["trajectories"] == steps * PER_STEP
    assert summary["logprob_gap_compared"] == 1, "of weights 0, which sampled all of it"
    return load_file(run / "model" / "model.safetensors")


NUMBERS = ("loss", "entropy", "importance_ratio", "importance_ratio_max", "policy_kl")


def numbers(folder: Path) -> list[list[float]]:
    """What was logged of each step of the run in `folder`, whoever computed it."""
    (run,) = folder.glob("run-*")
    steps = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    lags = [f"tokens_lag_{lag}" for lag in range(4)]
    return [[one.get(name, 0.0) for name in (*NUMBERS, *lags)] for one in steps if "entropy" in one]


def difference(a: Any, b: Any) -> float:
    """The largest one of any tensor, relative to its own norm."""
    # DeepSpeed saves a tied head under both of its names.
    assert b.keys() - a.keys() <= {"lm_head.weight"}
    return max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a)


@pytest.fixture(scope="module")
def alone_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of one rank lies."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(alone_in: Path, model_dir: Path, journal: Any) -> Any:
    """One rank, one micro step, without DeepSpeed."""
    return weights(alone_in, model_dir, journal)


def cell(ranks: int, stage: int, accumulated: int, **training: Any) -> dict[str, Any]:
    return {
        "ranks": ranks,
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "training": {"gradient_accumulation_steps": accumulated, **training},
    }


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "accumulated", "budget"), [(1, 4, 16384), (3, 1, 64)])
def test_two_ranks_end_where_one_does(
    tmp_path: Path,
    model_dir: Path,
    journal: Any,
    alone: Any,
    alone_in: Path,
    stage: int,
    accumulated: int,
    budget: int,
) -> None:
    from safetensors.torch import load_file

    given = cell(2, stage, accumulated, max_row_tokens=budget)
    made = weights(tmp_path, model_dir, journal, **given)
    assert difference(load_file(model_dir / "model.safetensors"), alone) > 1e-3, "it has learned"
    found = difference(alone, made)
    print(f"ZeRO {stage}, accumulation {accumulated}: {found:.2g}")
    assert found <= ALLOWED
    said = numbers(tmp_path)
    assert len(said) == STEPS
    for ours, theirs in zip(said, numbers(alone_in), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-5)
    assert [sum(count > 0 for count in one[len(NUMBERS) :]) for one in said] == [1] * STEPS
    assert [one[len(NUMBERS) + number // 5] > 0 for number, one in enumerate(said)] == [
        True
    ] * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_stages_and_accumulation_end_alike(
    tmp_path: Path,
    model_dir: Path,
    journal: Any,
    alone: Any,
    ranks: int,
    stage: int,
    accumulated: int,
) -> None:
    found = difference(
        alone, weights(tmp_path, model_dir, journal, **cell(ranks, stage, accumulated))
    )
    print(f"{ranks} ranks, ZeRO {stage}, accumulation {accumulated}: {found:.2g}")
    assert found <= ALLOWED
