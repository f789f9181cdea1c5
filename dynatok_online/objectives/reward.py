"""The verifiers' scores as weights.

    w = score ** power where score >= threshold, else 0; 1 where nothing was judged

The score of a token is that of the pass that sampled it, which is as good as the requirement that
it satisfies least (see `token_weights`). `power` 3 is what the quickstart uses: with 1 the slots
that stood from the start outvote the edited one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.targets import Factor
from dynatok_online.objectives.token_weights import token_weights
from dynatok_online.trajectory import Trajectory


class Reward(Factor, frozen=True):
    """Score of its pass, to a power."""

    static: ClassVar[bool] = True

    power: float = 1.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("power", "threshold"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def weights(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """[R]"""
        return token_weights(trajectory, "reward", power=self.power, threshold=self.threshold)
