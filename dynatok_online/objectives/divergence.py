"""Divergences of two distributions over the vocabulary, [m, V] -> [m], with gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum of p (log p - log q), in nats. Log-probabilities in."""
    return (log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """- sum of p log p, in nats, with gradient."""
    return -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)
