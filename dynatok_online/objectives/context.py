"""Counterfactual credit: a token counts by what it owes to the last edit.

    delta = log p(y | prompt after the edit) - log p(y | prompt before it)
    w = min(exp(delta), most) over its mean in earlier steps; most 5

Words that the edit asked for count more, words that would have been written anyway less. Before the
first edit w is 1 over that mean. Needs ghosts (`dynatok_online/spans/ghosts.py`). By hand: deltas
0, ln 2 and ln 9 under an earlier mean of 1 count 1, 2 and 5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Factor, Need, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Context(Factor, frozen=True):
    """min(exp(delta), most), over its mean."""

    needs: ClassVar[frozenset[Need]] = frozenset({"context"})
    mean_one: ClassVar[bool] = True

    most: float = 5.0

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"most must be above 0, got {self.most}")

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        delta = t.logp.detach() - t.context
        return delta.clamp(max=math.log(self.most)).exp().where(delta.isfinite(), 1.0)
