"""Key tokens, after TL-Training: the first ones after an edit weigh more.

    w = min(others / keys, most)     for the first `first` tokens after an edit, where keys < others
    w = 0                            for tokens of passes that score below `threshold`
    w = 1                            else

divided by its mean over earlier steps. `keys` and `others` are the trajectory's own numbers of such
tokens. `first` 32, `most` 9 and `threshold` 0.5.

Source: Ye et al., TL-Training: A Task-Feature-Based Framework for Training LLMs in Tool Use, 2024
(arXiv 2412.15495), where keys are the names of tools and their parameters.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.known import scores, since_edit
from dynatok_online.objectives.targets import Factor
from dynatok_online.trajectory import Trajectory


class Key(Factor, frozen=True):
    """More for what an edit decides, nothing for what a verifier rejects."""

    static: ClassVar[bool] = True
    mean_one: ClassVar[bool] = True

    first: int = 32
    most: float = 9.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.first < 1 or self.most < 1:
            raise ValueError(f"first and most must be at least 1, got {self.first}, {self.most}")

    def weights(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """[R]"""
        since = since_edit(trajectory)
        key = (since >= 0) & (since < self.first)
        keys, others = int(key.sum()), int((~key).sum())
        out = np.ones(len(key), np.float32)
        if 0 < keys < others:
            out[key] = min(others / keys, self.most)
        out[scores(trajectory) < self.threshold] = 0.0
        return out
