"""Dynamic fine-tuning: the gradient of a token grows with its probability.

    loss = -sg[p(y)] log p(y)

Source: Wu et al., On the Generalization of SFT: A Reinforcement Learning Perspective with Reward
Rectification, 2025 (arXiv 2508.05629). The same as TRL's `loss_type="dft"`. No parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Dft(Loss, frozen=True):
    """-sg[p] log p."""

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        return -t.p * t.logp
