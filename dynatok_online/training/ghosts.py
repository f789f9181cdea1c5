"""Runs the ghosts of a row: what its targets would be worth had the edit before them not come.

    row = plan_rows(trajectories, ghosts=True)[0]
    left = StoredKV()
    logits = model(**attention.inputs(row, device, attention.Layout(row, (), left)), ...).logits
    before = context_logprobs(model, row, left)     # [M], forward only, on the KV that is there
    delta = logprobs_of_targets - before            # how much each token owes to the edit

Without `left` the spans that ghosts stand on are run again first: at most one more forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from dynatok_online import attention
from dynatok_online.attention.stored import StoredKV
from dynatok_online.rows.ghosts import alone
from dynatok_online.rows.row import GhostRow, Row


def context_logprobs(
    model: torch.nn.Module, row: Row, left: StoredKV | None = None, device: Any = None
) -> torch.Tensor:
    """[M] log p(target | prompt before the edit); NaN where none came before. At least float32.

    `left`: the KV that the forward of `row` left, which is forgotten. Takes no gradient and leaves
    none: the model runs as in evaluation, with the weights of now.
    """
    device = next(model.parameters()).device if device is None else device
    ghosts = row.ghosts if left is not None else alone(row)
    if ghosts is None:
        found = torch.full((len(row.targets),), torch.nan, device=device)
    else:
        layout = attention.Layout(ghosts.row, () if left is None else (left,))
        logprobs = _logprobs(model, ghosts, layout, device)
        found = logprobs.new_full((len(row.targets),), torch.nan)
        found[attention.to_device(ghosts.targets, device, torch.long)] = logprobs
    if left is not None:
        left.forget()
    return found


@torch.no_grad()
def _logprobs(
    model: torch.nn.Module, ghosts: GhostRow, layout: attention.Layout, device: Any
) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        out = model(**attention.inputs(ghosts.row, device, layout), use_cache=False)
    finally:
        model.train(training)
    logits = out.logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = attention.to_device(ghosts.row.targets, device, torch.long)
    return -F.cross_entropy(logits, targets, reduction="none")
