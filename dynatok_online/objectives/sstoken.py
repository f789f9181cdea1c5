"""ssToken: of each trajectory, the tokens that are being learned, or that look at the prompt.

    score = loss * minmax(log p(y) - log p_history(y)) + (1 - loss) * attention to the prompt
    w     = 1 / share     for the `share` of a trajectory's tokens that score highest
    w     = 0             for the others

`history`: `recorded`, the actor's log-probabilities, is free; `reference` is an earlier model, as
the paper has it, for texts that no actor sampled. minmax is over the trajectory; where all
differences are within .001 they are rounding, and count 0. The attention is that of the last layer,
the mean over its heads, where the token is predicted. `share` .6, `loss` .5. Tokens that do not
count (thoughts, `dynatok select`) take no part.

It needs one more forward of each row, without gradient, and whole trajectories: a row budget that
splits one is refused. By hand: differences (0, .2, .4, .8, 1.) and attention (.9, .1, .5, .2, .1)
score (.45, .15, .45, .5, .55); three are kept, of two equal ones the earlier, and count 1 / .6.

Source: Qin et al., ssToken: Self-modulated and Semantic-aware Token Selection for LLM Fine-tuning,
2025 (arXiv 2510.18250).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.targets import Factor, Need, Scored

ROUNDING = 1e-3


class SsToken(Factor, frozen=True):
    """Keeps the best of each trajectory."""

    whole: ClassVar[bool] = True

    share: float = 0.6
    loss: float = 0.5
    history: Literal["recorded", "reference"] = "recorded"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss must be from 0 to 1, got {self.loss}")

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """By where history comes from."""
        return frozenset({"attention", self.history})

    def among(self, scored: Scored) -> npt.NDArray[np.float32]:
        """[n]"""
        earlier = scored.recorded if self.history == "recorded" else scored.reference
        learned = _minmax(scored.logp - earlier)
        score = self.loss * learned + (1 - self.loss) * scored.prompt_mass
        kept = max(1, round(self.share * len(score))) if len(score) else 0
        best = np.argsort(-score, kind="stable")[:kept]
        out = np.zeros(len(score), np.float32)
        out[best] = 1 / self.share
        return out


def _minmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not len(values) or np.ptp(values) < ROUNDING:
        return np.zeros_like(values)
    out: npt.NDArray[np.float64] = (values - values.min()) / np.ptp(values)
    return out
