"""Entropy- and KL-guided SFT: leave out what the model does not know yet, and guard it.

    loss = -log p(y)                 where neither KL(p || reference) nor the entropy H is high
         + pull * KL                 where KL is among the top `share`
         - push * H / ln V           where H is among the top `share`

High is above the quantile 1 - `share` of earlier steps; in the first step nothing is. `share` 0.2,
`pull` and `push` 0.05. Both regularisers have gradients. The released code shifts its masks by one
token and mixes probabilities with log-probabilities in its KL; this is the paper's.

Source: Q. Liu et al., Entropy-KL Divergence-based Token Masking: A Novel Approach for Selective
Fine-tuning of Large Language Models (EKSFT), 2026 (arXiv 2605.29303).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from dynatok_online.objectives.divergence import entropy, kl
from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Need, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Eksft(Loss, frozen=True):
    """Cross-entropy where the model is sure enough, regularisers elsewhere."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    watches: ClassVar[tuple[str, ...]] = ("eksft.kl", "eksft.entropy")

    share: float = 0.2
    pull: float = 0.05
    push: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {self.share}")

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        apart, unsure = kl(t.log_probs, t.reference_log_probs), entropy(t.log_probs)
        past.watch("eksft.kl", apart)
        past.watch("eksft.entropy", unsure)
        far = _above(apart, past.quantile("eksft.kl", 1 - self.share))
        open_ = _above(unsure, past.quantile("eksft.entropy", 1 - self.share))
        return (
            -t.logp.where(~(far | open_), 0.0)
            + self.pull * apart.where(far, 0.0)
            - self.push * (unsure / math.log(t.logits.shape[-1])).where(open_, 0.0)
        )


def _above(values: Tensor, border: float | None) -> Tensor:
    return values > (math.inf if border is None else border)
