"""Every objective in the online learner, on one recorded journal: one rank and two, DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynatok_online.objectives.written import FACTORS, LOSSES
from dynatok_online.trajectory import Trajectory
from learner.online.shares import pack, share_out, unpack
from learner.online.staleness import StalenessBuffer
from learner.training import stream_arguments
from tests.edited import edited, task
from tests.learner.conftest import VOCAB
from tests.learner.online.test_ranks import (
    ALLOWED,
    PER_STEP,
    cell,
    config,
    difference,
    recorded,
    weights,
)

STEPS = 4
OBJECTIVES: list[Any] = [*LOSSES, *FACTORS]
ENGINE = ["contrast", "hapo"]
"""Ghosts; groups, what the actor recorded, and statistics of earlier steps."""


def responses(steps: int = STEPS) -> Iterator[Trajectory]:
    """Four to each task, one after the other."""
    rng = np.random.default_rng(1)
    for number in range(steps * PER_STEP):
        if number % 4 == 0:
            pieces = task(rng, 3, prompt=8, slot=3, vocab=VOCAB)
        yield edited(rng, f"t{number}", pieces, sampled=(3, 9), version=0, vocab=VOCAB)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Any:
    """The weights that an objective ends with, by so many ranks."""
    journal = recorded(tmp_path_factory.mktemp("recorded"), responses())

    @cache
    def of(objective: str, ranks: int, publish_every: int = 2, reference: str = "start") -> Any:
        given = cell(ranks, 2, 2, max_steps=STEPS, max_row_tokens=128, reference=reference)
        given["publish_every"] = publish_every
        folder = tmp_path_factory.mktemp("run")
        return weights(folder, model_dir, journal, STEPS, objective=objective, **given)

    return of


@pytest.mark.engine
@pytest.mark.parametrize(
    "objective",
    [pytest.param(one, marks=[] if one in ENGINE else [pytest.mark.slow]) for one in OBJECTIVES],
)
def test_two_ranks_end_where_one_does(trained: Any, model_dir: Path, objective: str) -> None:
    from safetensors.torch import load_file

    one, two = trained(objective, 1), trained(objective, 2)
    assert difference(load_file(model_dir / "model.safetensors"), one) > 1e-4, "it has learned"
    found = difference(one, two)
    print(f"{objective}: {found:.2g}")
    assert found <= ALLOWED


@pytest.mark.slow
def test_a_reference_that_is_published_every_step_holds_nothing_back(trained: Any) -> None:
    """It is the model itself, so asft is dft; published every other step, it is not."""
    dft = trained("dft", 2)
    every = trained("asft", 2, publish_every=1, reference="published")
    other = trained("asft", 2, publish_every=2, reference="published")
    assert difference(dft, every) <= ALLOWED
    assert difference(dft, other) > 10 * ALLOWED
    assert difference(trained("asft", 2), other) > 10 * ALLOWED


def collator(tmp_path: Path, model_dir: Path, objective: str) -> Any:
    from dynatok_online.training.collator import TrajectoryCollator

    made = stream_arguments(config(tmp_path, model_dir, "r", objective=objective), tmp_path)
    return TrajectoryCollator("packed", 128, made.make_objective())


def test_advantages_are_dealt_out_with_the_rows(tmp_path: Path, model_dir: Path) -> None:
    """Each rank's rows hold those of the whole step, and they travel."""
    many = list(responses(1))
    planned = collator(tmp_path, model_dir, "grpo")
    per_rank, total = share_out(many, planned, 2, 2, True)
    rows = [
        row for rank in per_rank for batch in unpack(pack(rank, total, 0)) for row in batch["rows"]
    ]
    by_task: dict[tuple[int, str], set[float]] = {}
    found: dict[int, np.ndarray] = {}
    for row in rows:
        for t, index, value in zip(
            row.trajectory, row.response_index, row.columns.get("advantage", []), strict=False
        ):
            found.setdefault(int(t), np.zeros(len(many[t].response)))[index] = value
    assert sorted(found) == list(range(len(many)))
    for t, one in enumerate(many):
        for k, part in enumerate(one.passes):
            (value,) = set(found[t][part.start : part.stop])
            by_task.setdefault((t // 4, str(k)), set()).add(value)
    for values in by_task.values():
        assert len(values) == 4
        assert sum(values) == pytest.approx(0, abs=1e-5)
        assert np.square(list(values)).mean() == pytest.approx(1, abs=1e-5)


def test_a_first_step_without_groups_is_an_error(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = list(responses(1))[::4]
    planned = collator(tmp_path, model_dir, "grpo")
    with pytest.raises(ValueError, match=r"actor\.responses_per_task"):
        share_out(many, planned, 1, 1, True)
    ((batch,),), _ = share_out(many, planned, 1, 1)
    assert not any(row.columns["advantage"].any() for row in batch["rows"])
    assert "a step has nothing to learn from" in capsys.readouterr().err


def test_those_of_a_group_are_taken_together() -> None:
    buffer = StalenessBuffer[str](max_policy_lag=2, group=lambda item: item[0])
    for item in ("a1", "b1", "c1", "a2", "b2", "a3"):
        assert buffer.offer(item, 0)
    assert buffer.take(4) == ["a1", "a2", "a3", "b1"]
    assert buffer.offer("c2", 0)
    assert buffer.take(4) is None
    assert buffer.take(3) == ["b2", "c1", "c2"]
    assert (buffer.offered, buffer.taken, len(buffer)) == (7, 7, 0)
