"""Targets whose numbers are known by hand: p = (.5, .3, .2), reference (.25, .25, .5), target 0."""

from __future__ import annotations

from typing import Any

import torch

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Targets

P = (0.5, 0.3, 0.2)
REFERENCE = (0.25, 0.25, 0.5)


def targets(
    p: Any = P, ids: Any = (0,), reference: Any = REFERENCE, **columns: Any
) -> tuple[Targets, torch.Tensor]:
    """Targets of one distribution each, in float64, and their logits."""
    logits = torch.tensor(p, dtype=torch.float64).reshape(len(ids), -1).log().requires_grad_()
    other = torch.tensor(reference, dtype=torch.float64).log().expand(len(ids), -1)
    known = {
        name: torch.as_tensor(one, dtype=torch.float64).expand(len(ids))
        for name, one in columns.items()
    }
    return Targets(logits, torch.tensor(ids), known, lambda: other), logits


def loss_and_gradient(objective: Any, past: Lagged | None = None, **given: Any) -> Any:
    """(loss, gradient by logits) of one target."""
    t, logits = targets(**given)
    loss = objective(t, past or Lagged(objective.watches)).sum()
    (grad,) = torch.autograd.grad(loss, logits, allow_unused=True)
    return loss.item(), [0.0] * logits.shape[-1] if grad is None else grad[0].tolist()
