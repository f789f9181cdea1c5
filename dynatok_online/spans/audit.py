"""The audit: what the spans of a pass say was computed must be what the engine reported."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from dynatok_online.trajectory import OUTSIDE, Reuse, TokenIds, Trajectory


@dataclass(frozen=True)
class Mismatch:
    """One contradiction between what a trajectory records and what its spans say."""

    trajectory_id: str
    pass_index: int
    what: str
    """With both numbers in it."""

    def __str__(self) -> str:
        return f"trajectory {self.trajectory_id}, pass {self.pass_index}: {self.what}"


def audit(trajectory: Trajectory) -> list[Mismatch]:
    """Every way in which the records of `trajectory` contradict each other; empty if none.

    A trajectory with mismatches must not be trained on: its cache splits are not what the
    engine computed.
    """
    texts = [trajectory.tokens(k) for k in range(len(trajectory.passes))]
    return [
        Mismatch(trajectory.trajectory_id, k, what)
        for k in range(len(trajectory.passes))
        for what in _contradictions(trajectory, k, texts)
    ]


def _contradictions(trajectory: Trajectory, k: int, texts: list[TokenIds]) -> list[str]:
    one = trajectory.passes[k]
    fed, length = trajectory.fed_length(k), trajectory.kv_length(k)
    sampled_kv = length - fed
    out = []
    reused = sum(run.stop - run.start for run in one.reuse)
    if reused != one.num_cached_tokens:
        out.append(
            f"its spans computed {length - reused} positions, but the engine computed "
            f"{fed - one.num_cached_tokens + sampled_kv} ({fed} fed, {one.num_cached_tokens} of "
            f"them cached, {sampled_kv} sampled)"
        )
    at = 0
    for run, shift in one.moved_reuse():
        name = f"reuse {run.start} .. {run.stop}"
        if run.start < at or run.stop < run.start:
            out.append(f"{name} overlaps or precedes the run before it, which ends at {at}")
        at = max(at, run.stop)
        if run.stop >= fed and run.stop > run.start:
            out.append(
                f"{name} leaves no fed token to sample from: the pass fed {fed} tokens, so the "
                f"last position that can be reused is {fed - 2}"
            )
        size = trajectory.block_size
        if one.shifts is msgspec.UNSET and (run.start % size or run.stop % size):
            out.append(f"{name} does not fall on blocks of {size} tokens")
        if shift and trajectory.policy != "sticky":
            out.append(f"{name} moved by {shift}, which policy {trajectory.policy} never does")
        if run.origin != OUTSIDE:
            out += _origin_contradictions(trajectory, k, run, shift, texts)
        elif shift:
            out.append(f"{name} moved by {shift}, but no pass of the trajectory computed it")
    return out


def _origin_contradictions(
    trajectory: Trajectory, k: int, run: Reuse, shift: int, texts: list[TokenIds]
) -> list[str]:
    name = f"reuse {run.start} .. {run.stop}"
    if not 0 <= run.origin < k:
        return [f"{name} names pass {run.origin} as its origin, but only {k} passes came before"]
    held = trajectory.kv_length(run.origin)
    if run.stop - shift > held or run.start - shift < 0:
        moved = f", moved by {shift}," if shift else ""
        return [
            f"{name}{moved} exceeds the {held} positions that pass {run.origin} computed or held"
        ]
    if shift:
        mine = texts[k][run.start : run.stop]
        if np.array_equal(mine, texts[run.origin][run.start - shift : run.stop - shift]):
            return []
        return [f"{name}, moved by {shift}, has other tokens in pass {run.origin}"]
    mine, theirs = texts[k][: run.stop], texts[run.origin][: run.stop]
    if len(mine) < run.stop:
        return [f"{name} exceeds the {len(mine)} tokens of the pass"]
    differs = np.flatnonzero(mine != theirs)
    first = differs[differs >= run.start] if trajectory.policy == "sticky" else differs
    if not len(first):
        return []
    p = int(first[0])
    return [
        f"{name} holds KV of pass {run.origin}, but at position {p} this pass has token "
        f"{int(mine[p])} and pass {run.origin} token {int(theirs[p])}"
        + ("" if p >= run.start else f" (policy {trajectory.policy} reuses unchanged prefixes)")
    ]
