"""How far a trained model has gone from where it began, on text whose prompt never changed.

    drift = mean over positions of KL(model || base), in nats

An objective that teaches how to follow edits should leave static text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dynatok_online.rows.row import Row
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TARGETS = 256
"""Of one chunk: the logits of a whole row would fill the memory."""


def before_first_edit(trajectory: Trajectory) -> Trajectory:
    """The part of a response that was written before its prompt changed."""
    passes = []
    for one in trajectory.passes:
        if one.layout != trajectory.passes[0].layout:
            break
        passes.append(one)
    stop = passes[-1].stop if passes else 0
    return msgspec.structs.replace(
        trajectory,
        passes=tuple(passes),
        response=trajectory.response[:stop],
        logprobs=trajectory.logprobs[:stop],
        edits=(),
    )


def drift(
    model: PreTrainedModel,
    base: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    *,
    max_tokens: int = 4096,
) -> list[float]:
    """Mean KL(model || base) of each trajectory that has static text, in nats per token.

    Both models must be prepared for rows (`attention.prepare`).
    """
    from dynatok_online.rows.plan import needed_tokens, plan_rows

    static = [before_first_edit(one) for one in trajectories]
    static = [one for one in static if len(one.response)]
    sums, counts = np.zeros(len(static)), np.zeros(len(static))
    budget = max([max_tokens, *(needed_tokens(one) for one in static)])
    for row in plan_rows(static, max_tokens=budget):
        # One model after the other would keep the logits of a whole row.
        for (piece, p), (_, q) in zip(_logits(model, row), _logits(base, row), strict=True):
            p, q = p.log_softmax(-1), q.log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).double().cpu().numpy()
            np.add.at(sums, row.trajectory[piece], kl)
            np.add.at(counts, row.trajectory[piece], 1)
    return [float(one) for one in sums / counts]


def _logits(model: PreTrainedModel, row: Row) -> Iterator[tuple[slice, torch.Tensor]]:
    """(which targets, their [m, V] logits in float32 at least), without gradients.

    `model` must be prepared for rows (`attention.prepare`).
    """
    import torch

    from dynatok_online import attention
    from dynatok_online.training.head import ChunkedHead

    head, given = ChunkedHead(model), attention.inputs(row, model.device)
    with torch.no_grad():
        if not head.chunked:
            logits = model(**given, use_cache=False).logits[0]
            yield slice(0, len(logits)), logits.to(torch.promote_types(logits.dtype, torch.float32))
            return
        hidden = head.hidden(lambda: model(**given, use_cache=False))
    for start in range(0, len(hidden), TARGETS):
        piece = slice(start, min(start + TARGETS, len(hidden)))
        with torch.no_grad():
            logits = head.logits(hidden[piece])
        yield piece, logits
