"""Masked Thought: some response tokens are hidden from the model that goes on from them.

    input of a response token = `token`, with a chance that grows from 0 to `share` over the first
                                `warm` of the steps
    targets, and all prompts, stay as they are

A regulariser of inputs, not of losses: a factor of 1 that goes with any loss. What is hidden is
drawn for each response token by trajectory, index and step: all copies of a token, in whatever
state they are computed, are hidden or seen together. `share` .4 and `warm` .66; `token`: -1 is
the tokenizer's mask, or else its unknown or its padding token. References and ghosts see the same
inputs; evaluation sees all of them. Log-probabilities of hidden texts are not what an actor
recorded: with objectives that compare with those it is refused.

Source: Chen et al., Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical
Reasoning Learning of Language Models, 2024 (arXiv 2403.02178).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.targets import Factor
from dynatok_online.trajectory import Trajectory


class Masked(Factor, frozen=True):
    """Hides inputs; counts 1."""

    static: ClassVar[bool] = True

    share: float = 0.4
    warm: float = 0.66
    token: int = -1

    def __post_init__(self) -> None:
        for name in ("share", "warm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    def weights(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """[R]"""
        return np.ones(len(trajectory.response), np.float32)

    def chance(self, done: float) -> float:
        """That a token is hidden, when `done` (0 to 1) of the steps are done."""
        return self.share * min(1.0, done / self.warm) if self.warm else self.share
