"""The score of a pass, shared out by what each token owes to the last edit.

    delta = log p(y | prompt after the edit) - log p(y | prompt before it)
    w = score ** power * 2 sigmoid(delta)

The idea of T-REG (W. Zhou et al., 2024, arXiv 2412.02685), which contrasts a prompt with its
opposite to find the tokens that earn a reward of the whole; here the prompt before the edit is that
opposite, and costs a ghost (`dynatok_online/spans/ghosts.py`). The score is that of `reward`: 1
where nothing was judged. Before the first edit 2 sigmoid(delta) is 1. By hand: a token twice as
likely after the edit has sigmoid(ln 2) = .667, and counts 1.333 times the score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Factor, Need, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Contrast(Factor, frozen=True):
    """score ** power * 2 sigmoid(delta)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"context"})

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ValueError(f"power must be at least 0, got {self.power}")

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        delta = t.logp.detach() - t.context
        score = t.score.where(t.score.isfinite(), 1.0) ** self.power
        return score * 2 * delta.where(delta.isfinite(), 0.0).sigmoid()
