"""Arms that train on a part of the texts: what `dynatok select` keeps of those that plain
fine-tuning sees, again and again until as many loss tokens were used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from dynatok_online.select.scoring import Scorer
from dynatok_online.trajectory import Selected, Trajectory
from learner.offline.config import SelectConfig
from learner.offline.select import METHODS

Method = Literal["qtuning", "tshirt", "random"]
KEEP = 0.25
"""Share of the texts, of all methods."""
TOKENS = 0.5
"""Share of the tokens that Q-Tuning leaves of the texts that it prunes: its paper's budget is an
eighth of all tokens."""
NOISES = 10
"""Draws of T-SHIRT's noise; its paper has 30."""


def chosen(
    method: Method, model: Any, pool: list[Trajectory], seed: int
) -> tuple[list[Trajectory], dict[str, Any]]:
    """What is kept of `pool` (`random`: whole texts by lot), and how much that is.

    `model` scores and is of no use for anything else then.
    """
    if method == "random":
        count = max(1, round(KEEP * len(pool)))
        kept = random.Random(f"select/{seed}").sample(pool, count)
    else:
        config = SelectConfig(
            data="bench", method=method, keep=KEEP, tokens=TOKENS, noises=NOISES, seed=seed
        )
        kept, _ = METHODS[method](config, Scorer(model), pool)
    tokens = sum(len(one.response) for one in pool)
    left = sum(
        int((one.weights > 0).sum()) if isinstance(one, Selected) else len(one.response)
        for one in kept
    )
    return kept, {"texts": len(pool), "kept": len(kept), "share_of_tokens": left / tokens}


def pooled(made: Iterator[list[Trajectory]], loss_tokens: int) -> list[Trajectory]:
    """Batch after batch, until there are so many loss tokens."""
    pool: list[Trajectory] = []
    while sum(len(one.response) for one in pool) < loss_tokens:
        pool += next(made)
    return pool


def again(kept: list[Trajectory], batch: int, seed: int) -> Iterator[list[Trajectory]]:
    """Batches without end: every text once in each round, in an order of its own."""
    order = random.Random(f"again/{seed}")
    left: list[Trajectory] = []
    while True:
        while len(left) < batch:
            left += order.sample(kept, len(kept))
        yield left[:batch]
        left = left[batch:]
