"""A model's logits at the targets of a row, some at a time: all of them would fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynatok_online.rows.row import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TARGETS = 256
"""Of one chunk."""


def read_row(model: PreTrainedModel, row: Row) -> Iterator[tuple[slice, torch.Tensor]]:
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
