"""Passes as runs of *entries*: every computed (pass, position) once, and who holds it.

An entry is a position whose KV a pass computed; a pass that reused it holds the same entry. Blocks
that no pass of the trajectory computed (`OUTSIDE`) count as computed by the pass that took them.

Legend: E entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynatok_online.arrays import Int32s
from dynatok_online.trajectory import OUTSIDE, Reuse, Trajectory


@dataclass
class PassEntries:
    """The entries that one pass holds, as runs by ascending position."""

    entries: list[int]
    """Index of the first entry of each run."""
    starts: list[int]
    """First position of each run in this pass: another than it was computed at, where it moved."""
    stops: list[int]
    computed: list[bool]


def list_entries(
    trajectories: Sequence[Trajectory],
) -> tuple[list[list[PassEntries]], Int32s, Int32s]:
    """Every computed (pass, position) as an entry, and every pass as runs of entries."""
    passes: list[list[PassEntries]] = []
    tokens: list[Int32s] = [np.zeros(0, np.int32)]
    starts, counts = [0], [0]
    total = 0
    for trajectory in trajectories:
        group: list[PassEntries] = []
        for k, (one, length) in enumerate(zip(trajectory.passes, _needed(trajectory), strict=True)):
            text = trajectory.tokens(k)
            if one.stop > one.start and trajectory.fed_length(k) == 0:
                raise ValueError(
                    f"trajectory {trajectory.trajectory_id}, pass {k} sampled from an empty "
                    "prompt; give the prompt at least one token (a beginning-of-text token)"
                )
            mine = PassEntries([], [], [], [])
            at = 0
            for record, shift in (*one.moved_reuse(), (Reuse(OUTSIDE, length, length), 0)):
                run = Reuse(record.origin, min(record.start, length), min(record.stop, length))
                if run.origin == OUTSIDE and run.start < length:
                    continue
                if run.start > at:
                    mine.entries.append(total)
                    mine.starts.append(at)
                    mine.stops.append(run.start)
                    mine.computed.append(True)
                    tokens.append(text[at : run.start])
                    starts.append(at)
                    counts.append(run.start - at)
                    total += run.start - at
                if run.origin != OUTSIDE:
                    _borrow(mine, group[run.origin], run, shift)
                at = run.stop
            group.append(mine)
        passes.append(group)
    lengths = np.array(counts)
    offsets = np.cumsum(lengths) - lengths
    positions = np.arange(total) + np.repeat(np.array(starts) - offsets, lengths)
    return passes, np.concatenate(tokens), positions.astype(np.int32)


def _needed(trajectory: Trajectory) -> list[int]:
    """Positions of each pass that matter: all where it sampled, else what later passes reuse."""
    count = len(trajectory.passes)
    full = [trajectory.kv_length(k) for k in range(count)]
    need = [0] * count
    for k in reversed(range(count)):
        one = trajectory.passes[k]
        if one.stop > one.start:
            need[k] = full[k]
        at = 0
        for run, shift in one.moved_reuse():
            _check_run(trajectory, k, run, shift, at, full)
            at = run.stop
            if run.origin != OUTSIDE:
                need[run.origin] = max(need[run.origin], min(run.stop, need[k]) - shift)
    return need


def _check_run(
    trajectory: Trajectory, k: int, run: Reuse, shift: int, at: int, full: list[int]
) -> None:
    where = f"trajectory {trajectory.trajectory_id}, pass {k}: reuse {run.start} .. {run.stop}"
    if not at <= run.start <= run.stop:
        raise ValueError(f"{where} overlaps the run before it, which ends at {at}")
    if run.stop > full[k]:
        raise ValueError(f"{where} exceeds the {full[k]} positions of the pass")
    if run.origin != OUTSIDE:
        if not 0 <= run.origin < k:
            raise ValueError(f"{where} names pass {run.origin}, which is not an earlier pass")
        if not run.start - shift >= 0 or run.stop - shift > full[run.origin]:
            held = full[run.origin]
            moved = f", which moved by {shift}," if shift else ""
            raise ValueError(f"{where}{moved} exceeds the {held} positions of pass {run.origin}")
    elif shift:
        raise ValueError(f"{where} moved by {shift}, but no pass of the trajectory computed it")


def _borrow(mine: PassEntries, origin: PassEntries, run: Reuse, shift: int) -> None:
    """Adds the runs that `origin` holds where those of `run` stood before they moved by `shift`."""
    for entry, start, stop in zip(origin.entries, origin.starts, origin.stops, strict=True):
        low, high = max(start, run.start - shift), min(stop, run.stop - shift)
        if low < high:
            mine.entries.append(entry + low - start)
            mine.starts.append(low + shift)
            mine.stops.append(high + shift)
            mine.computed.append(False)
