"""Where each KV block of a pass came from, for people to look at.

The positions of a pass are cut into the engine's blocks, in engine order. A block taken from the
cache is

    reused   computed by an earlier pass on the same text
    kept     computed by an earlier pass while something before it read differently (sticky), and
             moved since where that was longer or shorter
    shared   computed by no pass of this trajectory (a system prompt that others use too)

and one that the pass computed is

    new         at least half of it is text that no pass computed before
    recomputed  computed before, but what stands before it has changed, or it moved
    evicted     computed before on the same text under the same weights, and gone from the cache
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dynatok_online.trajectory import OUTSIDE, RESPONSE, Pass, Trajectory

KINDS: Final = ("reused", "kept", "shared", "new", "recomputed", "evicted")


class Block(NamedTuple):
    """Positions `start .. stop` of a pass; `origin` is the pass that computed their KV."""

    kind: str
    start: int
    stop: int
    origin: int


def blocks(trajectory: Trajectory, k: int) -> list[Block]:
    """The blocks of pass `k`, in engine order; the last one may be partly filled."""
    length, size = trajectory.kv_length(k), trajectory.block_size
    origins = np.full(length, k)
    moved = np.zeros(length, bool)
    for run, shift in trajectory.passes[k].moved_reuse():
        origins[run.start : run.stop] = run.origin
        moved[run.start : run.stop] = shift != 0
    before = _computed_before(trajectory, k, length)
    text = trajectory.tokens(k)
    common = [_common(text, trajectory.tokens(j)) for j in range(k)]
    lost = _could_reuse(trajectory, k, common)
    found = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        origin = int(origins[start])
        if origin == OUTSIDE:
            kind = "shared"
        elif origin < k:
            kind = "reused" if common[origin] >= stop and not moved[start] else "kept"
        elif stop <= lost:
            kind = "evicted"
        elif 2 * int(before[start:stop].sum()) > stop - start:
            kind = "recomputed"
        else:
            kind = "new"
        found.append(Block(kind, start, stop, origin))
    return found


def recomputed_tokens(trajectory: Trajectory, k: int) -> int:
    """Positions that pass `k` computed although an earlier pass had computed the same text."""
    computed = _computed_before(trajectory, k, trajectory.kv_length(k))
    for run in trajectory.passes[k].reuse:
        computed[run.start : run.stop] = False
    return int(computed.sum())


def _computed_before(trajectory: Trajectory, k: int, length: int) -> npt.NDArray[np.bool_]:
    """[length] whether an earlier pass had KV of this piece of text, wherever it stood."""
    one = trajectory.passes[k]
    known = {piece for earlier in trajectory.passes[:k] for piece in earlier.layout}
    # The KV of the last token that a pass sampled is computed in the pass after it.
    written = max((earlier.stop - 1 for earlier in trajectory.passes[:k]), default=0)
    parts = [
        np.arange(one.start) < written
        if piece == RESPONSE
        else np.full(len(trajectory.pieces[piece]), piece in known)
        for piece in one.layout
    ]
    parts.append(np.zeros(length, bool))
    return np.concatenate(parts)[:length]


def _could_reuse(trajectory: Trajectory, k: int, common: Sequence[int]) -> int:
    """How many positions an engine that forgets nothing would have taken from its cache."""
    if trajectory.info.get("reuse") == "none":
        return 0  # nobody looked into the cache
    version = _version(trajectory.passes[k])
    # The last token that is fed must be computed, whatever the cache holds.
    limit = trajectory.fed_length(k) - 1
    size = trajectory.block_size
    found = [
        min(common[j], trajectory.kv_length(j), limit) // size * size
        for j in range(k)
        if _version(trajectory.passes[j]) == version
    ]
    return max(found, default=0)


def _version(one: Pass) -> int:
    return one.weight_versions[0].version if one.weight_versions else -1


def _common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
