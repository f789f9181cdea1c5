"""T-SHIRT and Q-Tuning by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dynatok_online.select import qtuning, tshirt


def test_a_token_counts_with_its_neighbours() -> None:
    perplexity = np.array([2.0, 8.0, 2.0])
    assert qtuning.token_scores(perplexity)[1] == 6
    # At the ends a token stands in for the missing one: .5 * 2 + .5 * (2 + 8).
    assert qtuning.token_scores(perplexity).tolist() == [6, 6, 6]
    assert qtuning.token_scores(perplexity, 0.0).tolist() == [2, 8, 2]


def test_either_end_is_pruned() -> None:
    scores = np.array([3.0, 1.0, 2.0, 9.0])
    assert qtuning.kept_tokens(scores, 0.5, "high").tolist() == [False, True, True, False]
    assert qtuning.kept_tokens(scores, 0.5, "low").tolist() == [True, False, False, True]
    assert qtuning.kept_tokens(scores, 0.01).sum() == 1
    with pytest.raises(ValueError, match="drop is 'both'; write high or low"):
        qtuning.kept_tokens(scores, 0.5, "both")


def test_quadrants() -> None:
    #                     hard, sure  hard, unsure  easy, sure  easy, unsure
    perplexity = np.array([9.0, 9.1, 1.0, 1.1])
    entropy = np.array([0.1, 0.9, 0.2, 0.8])
    found = qtuning.quadrants(perplexity, entropy, keep=0.5)
    assert found == qtuning.Quadrants(pruned=[0], whole=[3])


def test_as_many_responses_as_were_asked_for() -> None:
    rng = np.random.default_rng(0)
    perplexity, entropy = rng.lognormal(size=400), rng.random(400)
    for keep in (0.02, 0.1, 0.3):
        found = qtuning.quadrants(perplexity, entropy, keep)
        count = sum(map(len, found))
        assert 400 * keep <= count <= 400 * keep + 3
        middle = np.median(perplexity)
        assert all(perplexity[i] >= middle for i in found.pruned)
        assert all(perplexity[i] <= middle for i in found.whole)
    # More than both quadrants have cannot be: at the medians it ends.
    assert sum(map(len, qtuning.quadrants(perplexity, entropy, 1.0))) < 260


def test_informative_tokens_are_above_the_median_of_all() -> None:
    first, second = np.array([np.nan, -3.0, 0.1]), np.array([0.5, -0.2, 2.0])
    # |m| of all: .1 .2 .5 2 3, median .5
    assert [one.tolist() for one in tshirt.informative([first, second])] == [
        [False, True, False],
        [False, False, True],
    ]
    assert tshirt.score(first, np.array([False, True, True])) == pytest.approx(-1.45)
    assert tshirt.score(first, np.zeros(3, bool)) == -np.inf
    assert tshirt.informative([np.array([np.nan])])[0].tolist() == [False]


def test_steady_responses_among_the_best() -> None:
    #                   high, shaky  high, steady  middle, steady  low, steady
    scores = np.array([[9.0, 1.0], [5.0, 5.1], [4.0, 4.0], [0.0, 0.0]])
    assert tshirt.chosen(scores, 0.25) == [1]
    assert tshirt.chosen(scores, 0.5) == [2, 3]  # all four are among the best 2k
    assert tshirt.chosen(np.array([[-np.inf, 1.0], [0.0, 0.0]]), 1.0) == [1]
