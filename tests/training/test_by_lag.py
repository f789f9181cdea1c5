"""Importance ratio and KL by lag, by hand: r 2 is a KL of .3069, r 1/2 one of .1931."""

from __future__ import annotations

import math

import pytest
import torch

from dynatok_online.training.by_lag import MOST, ByLag, numbers


def told(newest: int | None, *targets: tuple[float, float, int]) -> dict[str, float]:
    """`targets`: probability by the trainer, by the actor, and the version."""
    table = ByLag()
    for some in (targets[:1], targets[1:], ()):  # however they are cut
        logp, recorded = (torch.tensor([one[at] for one in some]).log() for at in (0, 1))
        version = torch.tensor([one[2] for one in some], dtype=torch.long)
        table.watch(logp, recorded, version, newest)
    return numbers(table.sums.tolist(), float(table.most))


def test_each_lag_by_itself_and_all_together() -> None:
    found = told(7, (0.5, 0.25, 7), (0.2, 0.4, 5), (0.5, 0.25, 5), (0.3, math.nan, 5))
    assert found == pytest.approx(
        {
            "importance_ratio": (2 + 0.5 + 2) / 3,
            "importance_ratio_max": 2.0,
            "policy_kl": (0.3068528 + 0.1931472 + 0.3068528) / 3,
            "policy_lag_mean": 4 / 3,
            "tokens_lag_0": 1,
            "importance_ratio_lag_0": 2.0,
            "policy_kl_lag_0": 0.3068528,
            "tokens_lag_2": 2,
            "importance_ratio_lag_2": 1.25,
            "policy_kl_lag_2": 0.25,
        },
        rel=1e-6,
    )


def test_all_that_are_far_behind_count_together() -> None:
    found = told(100, (0.5, 0.5, 100 - MOST), (0.5, 0.5, 3))
    assert found["policy_lag_mean"] == pytest.approx((MOST + 97) / 2)
    assert [name for name in found if name.startswith("tokens")] == [f"tokens_lag_{MOST}_up"]


@pytest.mark.parametrize("newest", [None, 4])
def test_without_a_version_there_is_no_lag(newest: int | None) -> None:
    found = told(newest, (0.5, 0.25, -1))
    assert found.keys() == {"importance_ratio", "importance_ratio_max", "policy_kl"}


def test_a_probability_of_zero_leaves_numbers() -> None:
    found = told(0, (0.0, 0.5, 0), (0.5, 0.5, 0))
    assert math.isfinite(found["policy_kl"])
    assert found["importance_ratio"] == pytest.approx(0.5)


def test_without_recorded_log_probabilities_there_is_nothing() -> None:
    assert told(0, (0.5, math.nan, 0)) == {}
