"""Q-Tuning: four quadrants of perplexity and entropy, and within one of them the tokens, too.

                        entropy low                      entropy high
    perplexity high     a mistake that can be mended:    noise: left out
                        kept, its tokens are pruned
    perplexity low      known already: left out          keeps the model calibrated: kept whole

    s_i = (1 - lambda) PPL_i + lambda (PPL_(i-1) + PPL_(i+1))       pruned by s, lambda .5

After S. Wang et al., "Winning the Pruning Gamble", 2025 (arXiv 2509.23873). PPL_i is that of one
token, PPL and entropy of a response those of its mean token. High and low are the upper and the
lower share `alpha` of all responses; `alpha` is the least with which as many are kept as was asked
for. Sources disagree which end of s is pruned: `drop` says it. By hand: of PPL 2, 8, 2 the middle
one has s = 6.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynatok_online.arrays import Flags, Floats

ENDS = ("high", "low")


class Quadrants(NamedTuple):
    """Indices of responses, ascending."""

    pruned: list[int]
    """High perplexity, low entropy."""
    whole: list[int]
    """Low perplexity, high entropy."""


def quadrants(perplexity: Floats, entropy: Floats, keep: float) -> Quadrants:
    """The responses to keep, as near to `keep` of all as their quadrants have. Both are [N]."""
    wanted = max(1, round(keep * len(perplexity)))
    low, high = 0.0, 0.5
    for _ in range(30):
        middle = (low + high) / 2
        if sum(map(len, _at(perplexity, entropy, middle))) >= wanted:
            high = middle
        else:
            low = middle
    return _at(perplexity, entropy, high)


def _at(perplexity: Floats, entropy: Floats, alpha: float) -> Quadrants:
    def outer(values: Floats) -> tuple[Flags, Flags]:
        return values <= np.quantile(values, alpha), values >= np.quantile(values, 1 - alpha)

    easy, hard = outer(perplexity)
    sure, unsure = outer(entropy)
    pruned = hard & sure
    return Quadrants(
        np.flatnonzero(pruned).tolist(), np.flatnonzero(easy & unsure & ~pruned).tolist()
    )


def token_scores(perplexity: Floats, share: float = 0.5) -> Floats:
    """[R] s of the tokens of one response; at its ends a token stands in for the missing one."""
    padded = np.pad(perplexity, 1, mode="edge")
    return (1 - share) * perplexity + share * (padded[:-2] + padded[2:])


def kept_tokens(scores: Floats, tokens: float, drop: str = "high") -> Flags:
    """[R] which tokens stay: a share `tokens`, without those at the end `drop` of their scores."""
    if drop not in ENDS:
        raise ValueError(f"drop is {drop!r}; write {' or '.join(ENDS)}")
    count = min(len(scores), max(1, round(tokens * len(scores))))
    order = np.argsort(scores if drop == "high" else -scores, kind="stable")
    out = np.zeros(len(scores), bool)
    out[order[:count]] = True
    return out
