"""What a trajectory knows of its tokens before anything runs, as columns of a row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dynatok_online.trajectory import RESPONSE, Trajectory

Column = npt.NDArray[np.float32]


def known_columns(trajectory: Trajectory) -> dict[str, Column]:
    """[R] each: `score` and `since_edit` (see `targets.Targets`)."""
    return {"score": scores(trajectory), "since_edit": since_edit(trajectory)}


PLACES = ("response_from", "response_to", "sampled_from")


def response_places(trajectory: Trajectory) -> dict[str, Column]:
    """[R] each: where the response stands at each token, as engine positions of its pass. What was
    written before the pass is at `response_from .. response_to`, what it samples from
    `sampled_from` on; all other positions are the prompt's."""
    out = {name: np.zeros(len(trajectory.response), np.float32) for name in PLACES}
    for k, one in enumerate(trajectory.passes):
        before = one.layout[: one.layout.index(RESPONSE)]
        first = sum(len(trajectory.pieces[i]) for i in before)
        places = (first, first + one.start, trajectory.fed_length(k))
        for name, place in zip(PLACES, places, strict=True):
            out[name][one.start : one.stop] = place
    return out


def scores(trajectory: Trajectory) -> Column:
    """[R] the lowest score of the pass that sampled each token; NaN where nothing was judged."""
    out = np.full(len(trajectory.response), np.nan, np.float32)
    for one in trajectory.passes:
        if one.scores:
            out[one.start : one.stop] = min(one.scores.values())
    return out


def since_edit(trajectory: Trajectory) -> Column:
    """[R] tokens since the last edit took effect, 0 for the first one; -1 before any.

    An edit is a pass under other states than the one before it; a pass that only new weights began
    is none.
    """
    out = np.full(len(trajectory.response), -1, np.float32)
    passes = trajectory.passes
    for before, one in pairwise(passes):
        if one.states != before.states:
            out[one.start :] = np.arange(len(out) - one.start)
    return out
