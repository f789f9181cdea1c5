"""Ghosts: the tokens that were written after an edit, once more as if it had not come.

A response is written under one prompt until an edit, then under another. A *ghost* goes on with
the last pass before the edit, and takes the tokens that were sampled after it. Its predictions are
what the same tokens would have been worth without the edit; the difference to what they are worth
with it,

    delta = log p(token | prompt after the edit) - log p(token | prompt before it),

is how much a token owes to the edit.

Invariant: a ghost's KV is nobody else's. It sees all that the pass sees which it goes on with,
nothing ever sees it, and it is merged with no real KV, even where it is equal (a toggle A, B, A).
So the spans of everything real are what they are without ghosts, but for cuts.

Legend: T predictions of ghosts, Q ghosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from dynatok_online.arrays import Int32s, Ints
from dynatok_online.spans.entries import PassEntries
from dynatok_online.trajectory import Trajectory


@dataclass(frozen=True)
class Ghosts:
    """The ghosts of some trajectories, as part of their `Spans`."""

    bounds: Ints
    """[Q+1] ghost q holds spans `spans[bounds[q] .. bounds[q+1]]`, its own and those it sees."""
    spans: Ints
    """Span indices by ascending position."""
    owner: Ints
    """[T] which ghost makes each prediction."""
    loss_positions: Ints
    """[T] index of the token whose hidden state predicts."""
    targets: Ints
    """[T] which of the M targets of the spans it predicts."""


@dataclass(frozen=True)
class Continued:
    """One ghost before it is cut into spans: a pass, and the response tokens it goes on with."""

    trajectory: int
    start: int
    """Response index of the first token that it predicts."""
    stop: int
    entry: int
    """Its first entry; the token there is the last that was written before the edit."""


@dataclass
class GhostPasses:
    """Ghosts as passes, for `merging`."""

    passes: list[PassEntries] = field(default_factory=list)
    continued: list[Continued] = field(default_factory=list)
    tokens: list[Int32s] = field(default_factory=list)
    positions: list[Int32s] = field(default_factory=list)


def ghost_passes(
    trajectories: Sequence[Trajectory], passes: Sequence[Sequence[PassEntries]], entries: int
) -> GhostPasses:
    """The ghosts of `trajectories`, whose entries begin at index `entries`."""
    found = GhostPasses()
    for t, (trajectory, group) in enumerate(zip(trajectories, passes, strict=True)):
        for before, after in edited_stretches(trajectory):
            start, stop = trajectory.passes[after[0]].start, trajectory.passes[after[-1]].stop
            first, count = trajectory.kv_length(before), stop - start
            real = group[before]
            found.passes.append(
                PassEntries(
                    [*real.entries, entries],
                    [*real.starts, first],
                    [*real.stops, first + count],
                    [*(False for _ in real.entries), True],
                )
            )
            found.continued.append(Continued(t, start, stop, entries))
            # The last token before the edit has no KV in its own pass, and predicts the first.
            found.tokens.append(trajectory.response[start - 1 : stop - 1])
            found.positions.append(np.arange(first, first + count, dtype=np.int32))
            entries += count
    return found


def edited_stretches(trajectory: Trajectory) -> list[tuple[int, list[int]]]:
    """Passes written in one prompt state after another: the last pass before, and the passes.

    New weights and preemption cut what is written in one state into several passes; those count as
    one. Passes that sampled nothing left no text behind, and are passed over.
    """
    groups: list[list[int]] = []
    for k, one in enumerate(trajectory.passes):
        if one.stop == one.start:
            continue
        if groups and trajectory.passes[groups[-1][0]].layout == one.layout:
            groups[-1].append(k)
        else:
            groups.append([k])
    return [(before[-1], after) for before, after in pairwise(groups)]
