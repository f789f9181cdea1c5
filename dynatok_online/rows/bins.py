"""Which passes share a row: bins under a token budget, evened out by cost.

Readers (passes that sampled something) are put beside those with which they share most spans, so
that shared prefixes are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynatok_online.arrays import Floats, Ints, ranges
from dynatok_online.spans.build import Spans
from dynatok_online.trajectory import Trajectory


@dataclass(frozen=True)
class Unit:
    """Readers that are not parted: a trajectory, or a part of one that is too large."""

    readers: Ints
    spans: Ints
    """Every span that they need, ascending."""


def fill_bins(
    spans: Spans,
    trajectories: Sequence[Trajectory],
    max_tokens: int,
    ranks: int,
    pair_cost: float,
) -> list[list[Unit]]:
    """Units per row. For several ranks: a multiple of them, as even as can be."""
    units = _units(spans, trajectories, max_tokens)
    lengths = spans.lengths
    costs = lengths + pair_cost * spans.pairs()
    bins = _pack(units, lengths, costs, max_tokens, np.inf)
    if ranks == 1 or not bins:
        return bins
    wanted = -(-len(bins) // ranks) * ranks
    low = max(float(costs[unit.spans].sum()) for unit in units)
    high = max(float(costs[union(one)].sum()) for one in bins)
    for _ in range(12):
        middle = (low + high) / 2
        trial = _pack(units, lengths, costs, max_tokens, middle)
        if len(trial) <= wanted:
            bins, high = trial, middle
        else:
            low = middle
    return bins


def _closure(spans: Spans, readers: Ints) -> Ints:
    """The spans that readers hold, and all that those were computed on; ascending."""
    return closure(spans, spans.reader_spans[ranges(spans.reader_bounds, readers)])


def closure(spans: Spans, some: Ints) -> Ints:
    """Some spans, and all that they were computed on; ascending."""
    need = np.unique(some)
    while True:
        seen = spans.seen[ranges(spans.seen_bounds, need)]
        more = np.union1d(need, seen)
        if len(more) == len(need):
            return need
        need = more


def largest_pass(spans: Spans) -> int:
    """Most tokens that one pass depends on: a row must be able to hold them."""
    readers = len(spans.reader_trajectory)
    return max(
        (int(spans.lengths[_closure(spans, np.array([p]))].sum()) for p in range(readers)),
        default=0,
    )


def _units(spans: Spans, trajectories: Sequence[Trajectory], max_tokens: int) -> list[Unit]:
    units = []
    edges = np.flatnonzero(np.diff(spans.reader_trajectory, prepend=-1, append=-1))
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        readers = np.arange(first, stop)
        need = _closure(spans, readers)
        if int(spans.lengths[need].sum()) <= max_tokens:
            units.append(Unit(readers, need))
        else:
            units += _split(spans, readers, trajectories, max_tokens)
    units.sort(key=lambda unit: unit.spans.tolist())
    return units


def _split(
    spans: Spans, readers: Ints, trajectories: Sequence[Trajectory], max_tokens: int
) -> list[Unit]:
    """The passes of one trajectory in as few units as fit the budget, in order."""
    lengths = spans.lengths
    units: list[Unit] = []
    for p in readers:
        alone = _closure(spans, np.array([p]))
        if (size := int(lengths[alone].sum())) > max_tokens:
            name = trajectories[spans.reader_trajectory[p]].trajectory_id
            raise ValueError(
                f"trajectory {name}, pass {spans.reader_pass[p]} needs {size} tokens, but a row "
                f"holds {max_tokens}; raise the budget to at least {size} tokens, or leave "
                "longer trajectories out"
            )
        if units:
            joint = np.union1d(units[-1].spans, alone)
            if int(lengths[joint].sum()) <= max_tokens:
                units[-1] = Unit(np.append(units[-1].readers, p), joint)
                continue
        units.append(Unit(np.array([p]), alone))
    return units


def _pack(
    units: Sequence[Unit], lengths: Ints, costs: Floats, max_tokens: int, max_cost: float
) -> list[list[Unit]]:
    """First the bin that already holds most of a unit's spans, then the fullest that has room."""
    bins: list[list[Unit]] = []
    present = np.zeros((len(units), len(lengths)), bool)
    tokens = np.zeros(len(units), np.int64)
    spent = np.zeros(len(units))
    for unit in units:
        n = len(bins)
        new = ~present[:n, unit.spans]
        add_tokens, add_cost = new @ lengths[unit.spans], new @ costs[unit.spans]
        fits = (tokens[:n] + add_tokens <= max_tokens) & (spent[:n] + add_cost <= max_cost)
        if fits.any():
            at = int(np.lexsort((-tokens[:n], add_tokens, ~fits))[0])
            tokens[at] += add_tokens[at]
            spent[at] += add_cost[at]
            bins[at].append(unit)
        else:
            at = n
            tokens[at] = lengths[unit.spans].sum()
            spent[at] = costs[unit.spans].sum()
            bins.append([unit])
        present[at, unit.spans] = True
    return bins


def union(units: Sequence[Unit]) -> Ints:
    """Every span that some units need, ascending."""
    return np.unique(np.concatenate([unit.spans for unit in units]))
