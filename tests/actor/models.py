"""What a model says about a text, and models that say something else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def full_forward(model: PreTrainedModel, token_ids: Any) -> np.ndarray:
    """[n-1] log p(token i | tokens before it)."""
    import torch

    ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long)[None]
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()


def nudged(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy with other weights."""
    import torch

    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other
