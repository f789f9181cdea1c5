"""Anchored SFT: dynamic fine-tuning that is held near where it began.

    loss = -sg[p(y)] log p(y) + kl * KL

`direction: forward` is KL(reference || p), as the paper's text has it; `reverse` is
KL(p || reference), as its released code computes. `kl` 0.1; the paper takes 0.03 in bfloat16.

Source: Zhu et al., Anchored Supervised Fine-Tuning, 2025 (arXiv 2509.23753).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dynatok_online.objectives.divergence import kl
from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Need, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Asft(Loss, frozen=True):
    """`dft`, and the divergence from a reference."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    kl: float = 0.1
    direction: Literal["forward", "reverse"] = "forward"

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        pair = t.reference_log_probs, t.log_probs
        apart = kl(*pair) if self.direction == "forward" else kl(*reversed(pair))
        return -t.p * t.logp + self.kl * apart
