"""How likely another model finds what was written: nats per token, under each pass's own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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

    from dynatok_online import attention
    from dynatok_online.rows.plan import needed_tokens, plan_rows
    from dynatok_online.training.head import ChunkedHead

    head, texts = ChunkedHead(judge), [recomputed(one) for one in trajectories]
    total, count = 0.0, 0
    for row in plan_rows(texts, max_tokens=max([max_tokens, *map(needed_tokens, texts)])):
        ids = attention.to_device(row.targets, judge.device, torch.long)
        given = attention.inputs(row, judge.device)
        logp = head.log_probs(lambda given=given: judge(**given, use_cache=False), ids)
        total, count = total - float(logp.double().sum()), count + len(ids)
    return total / max(1, count)
