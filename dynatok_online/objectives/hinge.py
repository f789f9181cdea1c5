"""Inverted hinge: unlearn a token in favour of its nearest rival, and no further.

    loss = 1 + p(y) - max over v != y of p(v)      on tokens of passes that score below `threshold`
    loss = 0                                       elsewhere

Unlike a negative weight on -log p, it is bounded, and moves only the two words that matter. Give
it beside a loss of what is accepted: `objective: [reward, {name: hinge, scale: 0.1}]`.

Source: Cha et al., Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs (LoKU),
2024 (arXiv 2408.06621). `threshold` 0.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(Loss, frozen=True):
    """On rejected tokens alone."""

    threshold: float = 0.5

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        p = t.log_probs.exp()
        mine = t.logp.exp()
        rival = p.scatter(-1, t.ids[:, None], 0.0).amax(-1)
        return (1 + mine - rival).where(t.score < self.threshold, 0.0)
