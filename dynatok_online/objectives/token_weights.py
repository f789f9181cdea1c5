"""What each response token counts in the loss.

    loss = sum over targets of weight * -log p(target) / number of targets of the global batch

Invariant: an objective gives weights only. The divisor is the *number* of loss tokens, whatever
they weigh, counted over all rows, accumulation steps and ranks; never a mean per state.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynatok_online.trajectory import Pass, Selected, Trajectory

OBJECTIVES = ("sft", "reward")

Weights = npt.NDArray[np.float32]


def token_weights(
    trajectory: Trajectory,
    objective: str = "sft",
    *,
    power: float = 1.0,
    threshold: float = 0.0,
    thought: tuple[int, int] | None = None,
) -> Weights:
    """[R] float32 weight of each response token.

    `sft`: 1. `reward`: the score of the pass that sampled it, raised to `power`; 0 where that
    score is below `threshold`, 1 where nothing was judged. A pass is as good as the requirement
    that it satisfies least: the slots that stood from the start must not outvote the edited one.
    `thought`: the tokens that open and close one; what the response thinks first counts 0.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is unknown; use {' or '.join(OBJECTIVES)}")
    weights = np.ones(len(trajectory.response), np.float32)
    if objective == "reward":
        for one in trajectory.passes:
            weights[one.start : one.stop] = _reward(one, power, threshold)
    if thought is not None:
        weights[: thought_tokens(trajectory, *thought)] = 0.0
    return weights


def selected_weights(trajectory: Trajectory) -> Weights:
    """[R] float32 what was decided about each token before training (`dynatok select`); else 1."""
    if isinstance(trajectory, Selected):
        return np.asarray(trajectory.weights)
    return np.ones(len(trajectory.response), np.float32)


def thought_tokens(trajectory: Trajectory, opens: int, closes: int) -> int:
    """How many tokens of a response are thought: up to `closes`, or all if it never comes."""
    ends = np.flatnonzero(trajectory.response == closes)
    if len(ends):
        return int(ends[0]) + 1
    so_far = np.concatenate([trajectory.fed(0), trajectory.response]) if trajectory.passes else ends
    marks = so_far[(so_far == opens) | (so_far == closes)]
    return len(trajectory.response) if len(marks) and marks[-1] == opens else 0


def _reward(one: Pass, power: float, threshold: float) -> float:
    if not one.scores:
        return 1.0
    score = min(one.scores.values())
    return float(score**power) if score >= threshold else 0.0
