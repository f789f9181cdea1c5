"""How much of an edit old KV swallows, on responses that a sticky engine wrote.

    delta = log p(token | prompt after the edit) - log p(token | prompt before it)
    stale share = 1 - sum of delta with the KV that was kept / sum of delta with a fresh prompt

0: the edit has all its effect although old KV stands in the text. 1: it has none. Summed over the
tokens written after edits; the texts are the same on both sides. Single deltas are too noisy to be
divided one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from dynatok_online.adherence.measures import interval
from dynatok_online.arrays import Floats
from dynatok_online.spans.ghosts import edited_stretches
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST = 1.0
"""Nats: of an edit with less effect than this on a whole stretch no share is taken."""


class Swallowed(NamedTuple):
    """What came of one edit in response tokens `start .. stop`, written until the next one."""

    start: int
    stop: int
    kept: float
    """Sum of delta with the KV that was kept, in nats."""
    fresh: float
    """The same with a fresh prompt."""

    @property
    def share(self) -> float | None:
        """The stale share; None where the edit has too little effect on these tokens (`LEAST`).

        An effect below 0 is one, too: text that goes on as if no edit had come, because old KV
        swallowed it, is less likely with a fresh prompt.
        """
        return 1 - self.kept / self.fresh if abs(self.fresh) >= LEAST else None


def stale_share(
    model: PreTrainedModel, trajectories: Sequence[Trajectory], *, max_tokens: int = 4096
) -> dict[str, Any]:
    """`mean`, `half` of its 95 % interval (jackknife over responses; None for fewer than two) and
    `count` of the responses with an edit. `model` must be prepared for rows."""
    sums = np.array(
        [
            (effect(model, one, max_tokens), effect(model, recomputed(one), max_tokens))
            for one in trajectories
            if one.edits
        ]
    ).reshape(-1, 2)
    return ratio(sums)


def ratio(sums: np.ndarray) -> dict[str, Any]:
    """Of [responses, 2] sums of delta, with kept KV and with a fresh prompt. By hand: (1, 2) and
    (2, 2) give 1 - 3 / 4 = .25."""
    count = len(sums)
    total = sums.sum(0)
    if not count or not total[1]:
        return {"mean": None, "half": None, "count": count}
    mean = float(1 - total[0] / total[1])
    if count < 2:
        return {"mean": mean, "half": None, "count": count}
    left = total - sums  # without each response
    parts = count * mean - (count - 1) * (1 - left[:, 0] / left[:, 1])
    half = interval(parts.tolist()).half
    return {"mean": mean, "half": half if math.isfinite(half) else None, "count": count}


def recomputed(one: Trajectory) -> Trajectory:
    """The same response as if every edit had computed its whole prompt anew."""
    passes = tuple(
        msgspec.structs.replace(each, reuse=(), shifts=msgspec.UNSET, num_cached_tokens=0)
        for each in one.passes
    )
    return msgspec.structs.replace(one, passes=passes, policy="exact")


def swallowed(model: Any, one: Trajectory) -> list[Swallowed]:
    """Of every stretch after an edit. `model` must be prepared for rows. Two forwards with ghosts.

    By hand: deltas 2 and 1 with kept KV, 3 and 1 with a fresh prompt: share 1 - 3 / 4 = .25.
    """
    kept, fresh = deltas(model, one), deltas(model, recomputed(one))
    return [
        Swallowed(start, stop, float(kept[start:stop].sum()), float(fresh[start:stop].sum()))
        for start, stop in (
            (one.passes[after[0]].start, one.passes[after[-1]].stop)
            for _, after in edited_stretches(one)
        )
    ]


def effect(model: Any, one: Trajectory, max_tokens: int = 4096) -> float:
    """The sum of delta over the tokens after edits, in nats."""
    return float(deltas(model, one, max_tokens).sum())


def deltas(model: Any, one: Trajectory, max_tokens: int = 4096) -> Floats:
    """[R] delta of each response token, in nats; 0 before the first edit."""
    import torch

    from dynatok_online import attention
    from dynatok_online.rows.plan import needed_tokens, plan_rows
    from dynatok_online.training.ghosts import Shared
    from dynatok_online.training.head import ChunkedHead

    head, out = ChunkedHead(model), np.zeros(len(one.response))
    budget = max(max_tokens, needed_tokens(one))
    for row in plan_rows([one], max_tokens=budget, ghosts=True):
        ids = attention.to_device(row.targets, model.device, torch.long)
        with torch.no_grad(), Shared(model, head, row) as ghosts:
            given = attention.inputs(row, model.device, ghosts.layout)
            now = head.log_probs(partial(model, **given, use_cache=False), ids)
        delta = (now - ghosts.found).nan_to_num(0.0)
        out[row.response_index] = delta.double().cpu().numpy()
    return out
