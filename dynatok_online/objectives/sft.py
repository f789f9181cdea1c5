"""Supervised fine-tuning.

loss = -log p(y)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Sft(Loss, frozen=True):
    """-log p(y)."""

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        return -t.logp
