"""Passes to spans: which KV is the same, where it must be cut, and who sees what.

Invariant: a position's KV is decided by its token, its position and the KV at all lower
positions of the pass that computed it. Two positions with equal decisions are one *node*,
whichever pass, trajectory or engine block computed them. Nodes that every pass holds one
after the other, and never one without the other, form a *span*.

Nodes are found by hashing. Walking up a pass, `chain` sums one 64-bit value per position:

    fresh position (its KV was computed on exactly this chain)   mix(token, position)
    stale position (sticky: its KV was computed on another one)  mix(the chain it was computed on)

and a node is named by the chain up to and including itself. Recomputing a block gives the
same name as reusing it, so `exact` trajectories become the prefix tree of their texts
whatever the engine recomputed, and `sticky` ones a DAG, from one rule that never asks for the
policy.

Legend: E computed entries (with repeats), N nodes, S spans, M targets, P readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynatok_online.trajectory import OUTSIDE, Reuse, TokenIds, Trajectory

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

_MASK = (1 << 64) - 1


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


@dataclass
class _Pass:
    """One pass while spans are being built: runs of entries, by ascending position."""

    entries: list[int]
    """Index of the first entry of each run."""
    starts: list[int]
    """First position of each run."""
    stops: list[int]
    computed: list[bool]


def build_spans(trajectories: Sequence[Trajectory]) -> Spans:
    """The merged spans of `trajectories`; exact, sticky and static alike.

    Raises ValueError where a pass's reuse records cannot be followed (see `audit`).
    """
    passes, tokens, positions = _list_entries(trajectories)
    flat = [one for group in passes for one in group]
    before, after = _chain(flat, tokens, positions)
    _, first, node = np.unique(after, return_index=True, return_inverse=True)
    _check_collisions(first, node, tokens, positions, before)
    first_before, first_after = before[first], after[first]

    cut = _cuts(flat, node, positions, first_before, first_after, positions[first] == 0)
    head = _heads(flat, node, cut)
    heads = np.flatnonzero(cut)
    heads = heads[np.argsort(first[heads], kind="stable")]
    rank = np.empty(len(first), np.int64)
    rank[heads] = np.arange(len(heads))
    span = rank[head]
    order = np.lexsort((positions[first], span))
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(span, minlength=len(heads)))])

    held, held_bounds = _held_spans(flat, node, cut, span)
    seen_bounds, seen = _seen(held, held_bounds)

    names = [(t, k) for t, group in enumerate(passes) for k in range(len(group))]
    sampled = [trajectories[t].passes[k].stop > trajectories[t].passes[k].start for t, k in names]
    readers = np.flatnonzero(sampled)
    losses, response_index, counts = _targets(trajectories, names, flat, readers)
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
        loss_positions=place[node[losses]],
        loss_reader=np.repeat(np.arange(len(readers)), counts),
        response_index=response_index,
    )


def _list_entries(
    trajectories: Sequence[Trajectory],
) -> tuple[list[list[_Pass]], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Every computed (pass, position) as an entry, and every pass as runs of entries."""
    passes: list[list[_Pass]] = []
    tokens: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    starts, counts = [0], [0]
    total = 0
    for trajectory in trajectories:
        group: list[_Pass] = []
        for k, (one, length) in enumerate(zip(trajectory.passes, _needed(trajectory), strict=True)):
            text = trajectory.tokens(k)
            if one.stop > one.start and trajectory.fed_length(k) == 0:
                raise ValueError(
                    f"trajectory {trajectory.trajectory_id}, pass {k} sampled from an empty "
                    "prompt; give the prompt at least one token (a beginning-of-text token)"
                )
            mine = _Pass([], [], [], [])
            at = 0
            for record in (*one.reuse, Reuse(OUTSIDE, length, length)):
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
                    _borrow(mine, group[run.origin], run)
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
        for run in one.reuse:
            _check_run(trajectory, k, run, at, full)
            at = run.stop
            if run.origin != OUTSIDE:
                need[run.origin] = max(need[run.origin], min(run.stop, need[k]))
    return need


def _check_run(trajectory: Trajectory, k: int, run: Reuse, at: int, full: list[int]) -> None:
    where = f"trajectory {trajectory.trajectory_id}, pass {k}: reuse {run.start} .. {run.stop}"
    if not at <= run.start <= run.stop:
        raise ValueError(f"{where} overlaps the run before it, which ends at {at}")
    if run.stop > full[k]:
        raise ValueError(f"{where} exceeds the {full[k]} positions of the pass")
    if run.origin != OUTSIDE:
        if not 0 <= run.origin < k:
            raise ValueError(f"{where} names pass {run.origin}, which is not an earlier pass")
        if run.stop > full[run.origin]:
            held = full[run.origin]
            raise ValueError(f"{where} exceeds the {held} positions of pass {run.origin}")


def _borrow(mine: _Pass, origin: _Pass, run: Reuse) -> None:
    """Adds the runs that `origin` holds at the positions of `run`."""
    for entry, start, stop in zip(origin.entries, origin.starts, origin.stops, strict=True):
        low, high = max(start, run.start), min(stop, run.stop)
        if low < high:
            mine.entries.append(entry + low - start)
            mine.starts.append(low)
            mine.stops.append(high)
            mine.computed.append(False)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64: a bijection of 64-bit words that looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _chain(
    passes: Sequence[_Pass],
    tokens: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
) -> tuple[Hashes, Hashes]:
    """[E] the chain before each entry, and up to and including it."""
    place = _mix(positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    value = _mix(tokens.astype(np.uint64) ^ place)
    inclusive = np.cumsum(value, dtype=np.uint64)
    exclusive = inclusive - value
    shift = np.zeros(len(tokens), np.uint64)
    for one in passes:
        chain = 0
        for entry, start, stop, computed in zip(
            one.entries, one.starts, one.stops, one.computed, strict=True
        ):
            last = entry + stop - start - 1
            if computed:
                offset = (chain - int(exclusive[entry])) & _MASK
                shift[entry : last + 1] = offset
                chain = (int(inclusive[last]) + offset) & _MASK
            elif (int(exclusive[entry]) + int(shift[entry])) & _MASK == chain:
                chain = (int(inclusive[last]) + int(shift[last])) & _MASK
            else:
                named = inclusive[entry : last + 1] + shift[entry : last + 1]
                stale = _mix(_mix(named) ^ ~place[entry : last + 1])
                chain = (chain + int(stale.sum(dtype=np.uint64))) & _MASK
    return exclusive + shift, inclusive + shift


def _check_collisions(
    first: Ints,
    node: Ints,
    tokens: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    before: Hashes,
) -> None:
    """Equal names must mean equal token, position and chain (a 2^-64 chance per pair)."""
    for array in (tokens, positions, before):
        assert np.array_equal(array[first][node], array), "two different nodes share one hash"


def _cuts(
    passes: Sequence[_Pass],
    node: Ints,
    positions: npt.NDArray[np.int32],
    before: Hashes,
    after: Hashes,
    cut: Flags,
) -> Flags:
    """[N] whether a node begins a span.

    A node goes on with the span of the node below it iff that one is the only node ever found
    below it, it is the only one ever found above that one, and its KV was computed on it.
    """
    low, high = _links(passes, node)
    pairs = np.unique(low * len(before) + high)
    low, high = pairs // len(before), pairs % len(before)
    fresh = before[high] == after[low]
    alone = (np.bincount(low, minlength=len(before))[low] == 1) & (
        np.bincount(high, minlength=len(before))[high] == 1
    )
    cut = cut.copy()
    cut[high[~(fresh & alone)]] = True
    return cut


def _links(passes: Sequence[_Pass], node: Ints) -> tuple[Ints, Ints]:
    """Node pairs that stand at consecutive positions of some pass."""
    inner = np.ones(max(len(node) - 1, 0), bool)
    below: list[int] = []
    above: list[int] = []
    for one in passes:
        for entry, computed in zip(one.entries, one.computed, strict=True):
            if computed and entry > 0:
                inner[entry - 1] = False
        for i in range(1, len(one.entries)):
            below.append(one.entries[i - 1] + one.stops[i - 1] - one.starts[i - 1] - 1)
            above.append(one.entries[i])
    at = np.flatnonzero(inner)
    return (
        np.concatenate([node[at], node[np.array(below, np.int64)]]),
        np.concatenate([node[at + 1], node[np.array(above, np.int64)]]),
    )


def _heads(passes: Sequence[_Pass], node: Ints, cut: Flags) -> Ints:
    """[N] the node that begins the span of each node."""
    low, high = _links(passes, node)
    head = np.arange(len(cut))
    goes_on = ~cut[high]
    head[high[goes_on]] = low[goes_on]
    while True:
        further = head[head]
        if np.array_equal(further, head):
            return head
        head = further


def _held_spans(passes: Sequence[_Pass], node: Ints, cut: Flags, span: Ints) -> tuple[Ints, Ints]:
    """The spans that each pass holds, by position, and where each pass's begin."""
    head_entries = np.flatnonzero(cut[node])
    low = [entry for one in passes for entry in one.entries]
    high = [
        entry + stop - start
        for one in passes
        for entry, start, stop in zip(one.entries, one.starts, one.stops, strict=True)
    ]
    start = np.searchsorted(head_entries, np.array(low, np.int64))
    stop = np.searchsorted(head_entries, np.array(high, np.int64))
    which = head_entries[_ranges(start, stop)]
    runs = np.concatenate([[0], np.cumsum([len(one.entries) for one in passes])]).astype(np.int64)
    held_before = np.concatenate([[0], np.cumsum(stop - start)])
    return span[node[which]], held_before[runs]


def _seen(held: Ints, held_bounds: Ints) -> tuple[Ints, Ints]:
    """What each span sees: all that the first pass that held it held below it."""
    start = np.repeat(held_bounds[:-1], np.diff(held_bounds))
    _, at = np.unique(held, return_index=True)
    bounds = np.concatenate([[0], np.cumsum(at - start[at])]).astype(np.int64)
    return bounds, held[_ranges(start[at], at)]


def _targets(
    trajectories: Sequence[Trajectory],
    names: Sequence[tuple[int, int]],
    passes: Sequence[_Pass],
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
        _ranges(np.array(low, np.int64), np.array(high, np.int64)),
        _ranges(begin, begin + lengths),
        lengths,
    )


def _ranges(starts: Ints, stops: Ints) -> Ints:
    """`concatenate([arange(a, b) for a, b in zip(starts, stops)])`, at once."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(stops - ends, lengths)


def ranges(bounds: Ints, which: Ints) -> Ints:
    """Indices of everything in the lists `which` of a table whose lists begin at `bounds`."""
    return _ranges(bounds[which], bounds[which + 1])


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
    for run in one.reuse:
        name = f"reuse {run.start} .. {run.stop}"
        if run.start < at or run.stop < run.start:
            out.append(f"{name} overlaps or precedes the run before it, which ends at {at}")
        at = max(at, run.stop)
        if run.stop >= fed and run.stop > run.start:
            out.append(
                f"{name} leaves no fed token to sample from: the pass fed {fed} tokens, so the "
                f"last position that can be reused is {fed - 2}"
            )
        if run.start % trajectory.block_size or run.stop % trajectory.block_size:
            out.append(f"{name} does not fall on blocks of {trajectory.block_size} tokens")
        if run.origin != OUTSIDE:
            out += _origin_contradictions(trajectory, k, run, texts)
    return out


def _origin_contradictions(
    trajectory: Trajectory, k: int, run: Reuse, texts: list[TokenIds]
) -> list[str]:
    name = f"reuse {run.start} .. {run.stop}"
    if not 0 <= run.origin < k:
        return [f"{name} names pass {run.origin} as its origin, but only {k} passes came before"]
    held = trajectory.kv_length(run.origin)
    if run.stop > held:
        return [f"{name} exceeds the {held} positions that pass {run.origin} computed or held"]
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
