"""Weights of response tokens."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dynatok_online.objectives.token_weights import token_weights
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory


def scored(*scores: dict[str, float]) -> Trajectory:
    """Two tokens per pass."""
    n = 2 * len(scores)
    return Trajectory(
        trajectory_id="t",
        pieces=(np.array([1], np.int32),),
        response=np.zeros(n, np.int32),
        logprobs=np.zeros(n, np.float32),
        passes=tuple(
            Pass(
                layout=(0, RESPONSE),
                states={},
                start=2 * k,
                stop=2 * k + 2,
                num_cached_tokens=0,
                scores=one,
            )
            for k, one in enumerate(scores)
        ),
    )


def test_sft_counts_every_token_once() -> None:
    assert token_weights(scored({"a": 0.0}, {}), "sft").tolist() == [1, 1, 1, 1]


def test_reward_is_the_lowest_score_of_the_tokens_own_pass() -> None:
    weights = token_weights(scored({"a": 1.0, "b": 0.5}, {"a": 0.0}, {}), "reward")
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.5, 0.5, 0, 0, 1, 1]


def test_power_and_threshold() -> None:
    one = scored({"a": 0.5}, {"a": 0.9})
    assert token_weights(one, "reward", power=2).tolist() == pytest.approx([0.25] * 2 + [0.81] * 2)
    assert token_weights(one, "reward", power=0, threshold=0.6).tolist() == [0, 0, 1, 1]


def test_unknown_objective() -> None:
    with pytest.raises(ValueError, match="use sft or reward"):
        token_weights(scored({}), "rl")


@pytest.mark.parametrize(
    ("prompt", "response", "counted"),
    [
        ([1], [8, 5, 9, 5], [0, 0, 0, 1]),
        ([1, 8], [5, 5, 9, 5], [0, 0, 0, 1]),
        ([1, 8], [5, 5, 5, 5], [0, 0, 0, 0]),
        ([8, 9], [5, 5, 5, 5], [1, 1, 1, 1]),
        ([1], [8, 5, 5, 5], [0, 0, 0, 0]),
    ],
)
def test_thoughts_can_be_left_out(
    prompt: list[int], response: list[int], counted: list[int]
) -> None:
    one = msgspec.structs.replace(
        scored({}, {}),
        pieces=(np.array(prompt, np.int32),),
        response=np.array(response, np.int32),
    )
    assert token_weights(one, thought=(8, 9)).tolist() == counted
    assert token_weights(one).tolist() == [1, 1, 1, 1]
