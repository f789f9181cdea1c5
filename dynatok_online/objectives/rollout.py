"""One-Token Rollout: policy gradient on one sampled token, in closed form.

    loss = -[ sg[q(y)] log p(y) + others * sum over a != y of sg[q(a)] log p(a) ]
    q = softmax(logits / temperature)

What the paper estimates from K samples of q, rewarding the data's token with 1 and any other with
`others` (-0.1), is their expectation, which costs nothing where all logits are at hand.
`temperature` 1.

Source: Ming et al., One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient,
2025 (arXiv 2509.26313).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Loss, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Rollout(Loss, frozen=True):
    """The expectation of one-token rollouts."""

    others: float = -0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        q = (t.logits.detach() / self.temperature).softmax(-1)
        every = (q * t.log_probs).nan_to_num(0.0).sum(-1)
        mine = q.gather(-1, t.ids[:, None])[:, 0] * t.logp
        return -(mine + self.others * (every - mine))
