"""How likely another model finds what was written: nats per token, under each pass's own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynatok_online.adherence.reading import read_row
from dynatok_online.adherence.stale import recomputed
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def nll_under(
    judge: PreTrainedModel, trajectories: Sequence[Trajectory], *, max_tokens: int = 4096
) -> float:
    """Mean negative log-likelihood of the response tokens under `judge`, prepared for rows.

    Whatever KV the writer kept, the judge reads every prompt anew: it judges the text.
    """
    import torch

    from dynatok_online.rows.plan import needed_tokens, plan_rows

    texts = [recomputed(one) for one in trajectories]
    total, count = 0.0, 0
    for row in plan_rows(texts, max_tokens=max([max_tokens, *map(needed_tokens, texts)])):
        ids = torch.as_tensor(row.targets, dtype=torch.long, device=judge.device)
        for piece, logits in read_row(judge, row):
            total += float(torch.nn.functional.cross_entropy(logits, ids[piece], reduction="sum"))
        count += len(ids)
    return total / max(1, count)
