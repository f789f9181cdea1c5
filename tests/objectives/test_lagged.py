"""Statistics of earlier steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dynatok_online.objectives.lagged import Lagged


def told(values: torch.Tensor) -> Lagged:
    past = Lagged(["x"])
    past.watch("x", values)
    past.step()
    return past


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_quantiles_within_a_bin(share: float, shift: float) -> None:
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 3 + shift
    found = told(values).quantile("x", share)
    assert found == pytest.approx(np.quantile(values.numpy(), share), rel=0.03, abs=0.002)


def test_moments_are_exact() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, float("nan")])
    past = told(values)
    assert past.mean("x") == pytest.approx(7 / 3)
    assert past.std("x") == pytest.approx(float(np.std([1, 2, 4])))
    assert past.low("x") == pytest.approx(1, rel=0.03)
    assert past.high("x") == pytest.approx(4, rel=0.03)


def test_the_first_step_knows_nothing() -> None:
    past = Lagged(["x"])
    past.watch("x", torch.ones(3))
    assert past.median("x") is None
    assert past.mean("x") is None
    past.step()
    assert past.median("x") == pytest.approx(1.0, rel=0.03)


def test_chunks_and_ranks_add_up() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(1))
    whole = told(values)
    parts = Lagged(["x"])
    for piece in values.split(7):
        parts.watch("x", piece)
    parts.step()
    assert parts.state()["x"] == pytest.approx(whole.state()["x"])
    one, two = Lagged(["x"]), Lagged(["x"])
    one.watch("x", values[:100])
    two.watch("x", values[100:])
    told_by_two: list[torch.Tensor] = []

    def keep(now: torch.Tensor) -> torch.Tensor:
        told_by_two.append(now)
        return now

    two.step(keep)
    one.step(lambda now: now + told_by_two[0])
    assert one.quantile("x", 0.3) == whole.quantile("x", 0.3)


def test_old_steps_fade() -> None:
    past = told(torch.full((100,), 1.0))
    for _ in range(30):
        past.watch("x", torch.full((100,), 5.0))
        past.step()
    assert past.median("x") == pytest.approx(5.0, rel=0.03)
    assert past.mean("x") == pytest.approx(5.0, rel=0.05)


def test_goes_on_from_a_checkpoint() -> None:
    past = told(torch.randn(50))
    other = Lagged(["x", "new"])
    other.restore(json.loads(json.dumps(past.state())))
    assert other.quantile("x", 0.7) == past.quantile("x", 0.7)
    assert other.median("new") is None


def test_an_evaluation_is_not_heard() -> None:
    past = Lagged(["x"])
    past.listening = False
    past.watch("x", torch.ones(3))
    past.step()
    assert past.median("x") is None


def test_few_values_at_the_ends_of_the_range() -> None:
    past = told(torch.tensor([0.0, 1e-9, -1e9, 1e9]))
    assert past.low("x") == pytest.approx(-1e4, rel=0.05)
    assert past.high("x") == pytest.approx(1e4, rel=0.05)
    assert told(torch.tensor([0.0, 1e-9])).median("x") == 0.0
