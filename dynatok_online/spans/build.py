"""Passes to spans: which KV is the same, where it must be cut, and who sees what.

Invariant: a position's KV is decided by its token, its position and the KV at all lower
positions of the pass that computed it. `entries` lists what was computed, `merging` finds what
is the same; here the pieces become spans with the list of what each sees.

Legend: E entries (computed positions, with repeats), N nodes (distinct ones), S spans, M targets,
P readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynatok_online.arrays import Int32s, Ints, ranges, stretches
from dynatok_online.spans.audit import Mismatch, audit
from dynatok_online.spans.entries import PassEntries, list_entries
from dynatok_online.spans.ghosts import GhostPasses, Ghosts, ghost_passes
from dynatok_online.spans.merging import Nodes, merge
from dynatok_online.trajectory import Trajectory

__all__ = ["Mismatch", "Spans", "audit", "build_spans"]


@dataclass(frozen=True)
class Spans:
    """The spans of some trajectories, in an order in which each comes after all it sees."""

    input_ids: npt.NDArray[np.int32]
    """[N] token ids, span after span."""
    position_ids: npt.NDArray[np.int32]
    """[N] engine positions."""
    bounds: Ints
    """[S+1] span s holds tokens `bounds[s] .. bounds[s+1]`."""
    seen_bounds: Ints
    """[S+1] span s sees, besides itself, `seen[seen_bounds[s] .. seen_bounds[s+1]]`."""
    seen: Ints
    """Span indices, all lower than the span that sees them."""
    reader_bounds: Ints
    """[P+1] reader p holds spans `reader_spans[reader_bounds[p] .. reader_bounds[p+1]]`."""
    reader_spans: Ints
    """Span indices by ascending position."""
    reader_trajectory: Ints
    """[P] index of the trajectory that a reader belongs to."""
    reader_pass: Ints
    """[P] index of its pass. A reader is a pass that sampled something."""
    loss_positions: Ints
    """[M] index of the token whose hidden state a response token was sampled from."""
    loss_reader: Ints
    """[M] the pass that sampled it, as an index of readers; ascending."""
    response_index: Ints
    """[M] which response token of its trajectory it is."""
    seen_shifts: Ints | None = None
    """As long as `seen`: how far what a span sees has moved since it was computed. Its keys are
    turned on by as many positions before the span's queries meet them. None: nothing has moved."""
    ghosts: Ghosts | None = None
    """Where they were asked for. Their spans are the last; no reader holds one."""

    @property
    def lengths(self) -> Ints:
        """[S] tokens per span."""
        return np.diff(self.bounds)

    def pairs(self) -> Ints:
        """[S] (query, key) pairs that the attention of each span computes."""
        lengths = self.lengths
        owner = np.repeat(np.arange(len(lengths)), np.diff(self.seen_bounds))
        before = np.bincount(owner, lengths[self.seen], len(lengths)).astype(np.int64)
        return lengths * before + lengths * (lengths + 1) // 2


def build_spans(trajectories: Sequence[Trajectory], *, ghosts: bool = False) -> Spans:
    """The merged spans of `trajectories`; exact, sticky and static alike.

    `ghosts`: also those of the `ghosts` of their edits.
    Raises ValueError where a pass's reuse records cannot be followed (see `audit`).
    """
    passes, tokens, positions = list_entries(trajectories)
    flat = [one for group in passes for one in group]
    added = ghost_passes(trajectories, passes, len(tokens)) if ghosts else GhostPasses()
    tokens = np.concatenate([tokens, *added.tokens])
    positions = np.concatenate([positions, *added.positions])
    everyone = flat + added.passes
    nodes = merge(everyone, tokens, positions, [one.entry for one in added.continued])
    first = nodes.first

    heads = np.flatnonzero(nodes.begins)
    heads = heads[np.argsort(first[heads], kind="stable")]
    rank = np.empty(len(first), np.int64)
    rank[heads] = np.arange(len(heads))
    span = rank[nodes.head]
    order = np.lexsort((positions[first], span))
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(span, minlength=len(heads)))])

    held, held_bounds, held_shifts = _held_spans(everyone, nodes, span, positions)
    seen_bounds, seen, seen_shifts = _seen(held, held_bounds, held_shifts)

    names = [(t, k) for t, group in enumerate(passes) for k in range(len(group))]
    sampled = [trajectories[t].passes[k].stop > trajectories[t].passes[k].start for t, k in names]
    readers = np.flatnonzero(sampled)
    losses, response_index, counts = _targets(trajectories, names, flat, readers)
    loss_reader = np.repeat(np.arange(len(readers)), counts)
    return Spans(
        input_ids=tokens[first[order]],
        position_ids=positions[first[order]],
        bounds=bounds,
        seen_bounds=seen_bounds,
        seen=seen,
        reader_bounds=np.concatenate([[0], np.cumsum(np.diff(held_bounds)[readers])]),
        reader_spans=held[ranges(held_bounds, readers)],
        reader_trajectory=np.array([names[p][0] for p in readers], np.int64),
        reader_pass=np.array([names[p][1] for p in readers], np.int64),
        loss_positions=place[nodes.node[losses]],
        loss_reader=loss_reader,
        response_index=response_index,
        seen_shifts=seen_shifts if seen_shifts.any() else None,
        ghosts=_ghosts(
            added,
            held_bounds[len(flat) :],
            held,
            place[nodes.node],
            np.array([names[p][0] for p in readers], np.int64)[loss_reader],
            response_index,
        )
        if ghosts
        else None,
    )


def _ghosts(
    added: GhostPasses,
    bounds: Ints,
    held: Ints,
    place: Ints,
    trajectory: Ints,
    response_index: Ints,
) -> Ghosts:
    """`bounds` [Q+1] into `held`; `place` [E]; `trajectory` and `response_index` [M], ascending."""
    counts = np.array([one.stop - one.start for one in added.continued], np.int64)
    begin = np.array([one.entry for one in added.continued], np.int64)
    # Readers are sorted by trajectory, and their targets by response index: one key for both.
    width = int(response_index.max(initial=0)) + 1
    key = np.array([one.trajectory * width + one.start for one in added.continued], np.int64)
    return Ghosts(
        bounds=bounds - bounds[0],
        spans=held[bounds[0] :],
        owner=np.repeat(np.arange(len(counts)), counts),
        loss_positions=place[stretches(begin, begin + counts)],
        targets=np.searchsorted(trajectory * width + response_index, stretches(key, key + counts)),
    )


def _held_spans(
    passes: Sequence[PassEntries], nodes: Nodes, span: Ints, positions: Int32s
) -> tuple[Ints, Ints, Ints]:
    """The spans that each pass holds, by position, where each pass's begin, and how far each span
    has moved in it."""
    head_entries = np.flatnonzero(nodes.begins[nodes.node])
    low = [entry for one in passes for entry in one.entries]
    high = [
        entry + stop - start
        for one in passes
        for entry, start, stop in zip(one.entries, one.starts, one.stops, strict=True)
    ]
    start = np.searchsorted(head_entries, np.array(low, np.int64))
    stop = np.searchsorted(head_entries, np.array(high, np.int64))
    which = head_entries[stretches(start, stop)]
    runs = np.concatenate([[0], np.cumsum([len(one.entries) for one in passes])]).astype(np.int64)
    held_before = np.concatenate([[0], np.cumsum(stop - start)])
    at = np.array([begin for one in passes for begin in one.starts], np.int64)
    moved = np.repeat(at - positions[np.array(low, np.int64)], stop - start)
    return span[nodes.node[which]], held_before[runs], moved


def _seen(held: Ints, held_bounds: Ints, moved: Ints) -> tuple[Ints, Ints, Ints]:
    """What each span sees: all that the first pass that held it, which computed it, held below it;
    and how far that had moved."""
    start = np.repeat(held_bounds[:-1], np.diff(held_bounds))
    _, at = np.unique(held, return_index=True)
    assert not moved[at].any(), "a span stands elsewhere than where it was computed"
    bounds = np.concatenate([[0], np.cumsum(at - start[at])]).astype(np.int64)
    below = stretches(start[at], at)
    return bounds, held[below], moved[below]


def _targets(
    trajectories: Sequence[Trajectory],
    names: Sequence[tuple[int, int]],
    passes: Sequence[PassEntries],
    readers: Ints,
) -> tuple[Ints, Ints, Ints]:
    """[M] entries that predict response tokens, [M] response indices, [P] tokens per reader."""
    low: list[int] = []
    high: list[int] = []
    first: list[int] = []
    counts: list[int] = []
    for p in readers:
        t, k = names[p]
        one = trajectories[t].passes[k]
        position = trajectories[t].fed_length(k) - 1
        held = passes[p]
        for entry, start, stop in zip(held.entries, held.starts, held.stops, strict=True):
            if stop > position:
                low.append(entry + max(0, position - start))
                high.append(entry + stop - start)
        first.append(one.start)
        counts.append(one.stop - one.start)
    lengths = np.array(counts, np.int64)
    begin = np.array(first, np.int64)
    return (
        stretches(np.array(low, np.int64), np.array(high, np.int64)),
        stretches(begin, begin + lengths),
        lengths,
    )
