"""Which entries are the same KV, and where spans begin.

Two entries with equal token, position and KV at all lower positions of the passes that computed
them are one *node*, whichever pass, trajectory or engine block computed them. Nodes that every
pass holds one after the other, and never one without the other, form a span.

Nodes are found by hashing. Walking up a pass, `chain` sums one 64-bit value per position:

    fresh position (its KV was computed on exactly this chain)   mix(token, position)
    stale position (sticky: its KV was computed on another one)  mix(the chain it was computed on)
    moved position (its keys were turned on by a shift)          mix(that chain, shift)

and a node is named by the chain up to and including itself. Recomputing a block gives the
same name as reusing it, so `exact` trajectories become the prefix tree of their texts
whatever the engine recomputed, and `sticky` ones a DAG, from one rule that never asks for the
policy.

Legend: E entries, N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynatok_online.arrays import Flags, Hashes, Int32s, Ints, mixed
from dynatok_online.spans.entries import PassEntries

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Nodes:
    """The distinct KV among the entries of some passes."""

    first: Ints
    """[N] the first entry of each node."""
    node: Ints
    """[E] the node of each entry."""
    begins: Flags
    """[N] whether a node begins a span."""
    head: Ints
    """[N] the node that begins the span of each node."""


def merge(
    passes: Sequence[PassEntries],
    tokens: Int32s,
    positions: Int32s,
    ghosts: Sequence[int] = (),
) -> Nodes:
    """The nodes of `passes`, whose entries have these [E] tokens and positions.

    `ghosts`: the first entry of each ghost; ghosts are the last entries, and begin spans.
    """
    real = ghosts[0] if ghosts else len(tokens)
    before, after = _chain(passes, tokens, positions, real)
    _, first, node = np.unique(after, return_index=True, return_inverse=True)
    _check_collisions(first, node, tokens, positions, before)
    low, high = _links(passes, node)
    begins = _begins(low, high, before[first], after[first], positions[first] == 0)
    begins[node[np.array(ghosts, np.int64)]] = True
    return Nodes(first, node, begins, _heads(low, high, begins))


def _chain(
    passes: Sequence[PassEntries],
    tokens: Int32s,
    positions: Int32s,
    real: int,
) -> tuple[Hashes, Hashes]:
    """[E] the chain before each entry, and up to and including it. Those from `real` on are
    ghosts, which no real one may be taken for."""
    place = mixed(positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    place[real:] = mixed(~place[real:])
    value = mixed(tokens.astype(np.uint64) ^ place)
    inclusive = np.cumsum(value, dtype=np.uint64)
    exclusive = inclusive - value
    shift = np.zeros(len(tokens), np.uint64)
    for one in passes:
        chain = 0
        for entry, start, stop, computed in zip(
            one.entries, one.starts, one.stops, one.computed, strict=True
        ):
            moved = start - int(positions[entry])
            last = entry + stop - start - 1
            if computed:
                offset = (chain - int(exclusive[entry])) & _MASK
                shift[entry : last + 1] = offset
                chain = (int(inclusive[last]) + offset) & _MASK
            elif not moved and (int(exclusive[entry]) + int(shift[entry])) & _MASK == chain:
                chain = (int(inclusive[last]) + int(shift[last])) & _MASK
            else:
                named = inclusive[entry : last + 1] + shift[entry : last + 1]
                if moved:
                    named = mixed(named) ^ mixed(np.full(1, moved, np.int64).view(np.uint64))
                stale = mixed(mixed(named) ^ ~place[entry : last + 1])
                chain = (chain + int(stale.sum(dtype=np.uint64))) & _MASK
    return exclusive + shift, inclusive + shift


def _check_collisions(
    first: Ints,
    node: Ints,
    tokens: Int32s,
    positions: Int32s,
    before: Hashes,
) -> None:
    """Equal names must mean equal token, position and chain (a 2^-64 chance per pair)."""
    for array in (tokens, positions, before):
        assert np.array_equal(array[first][node], array), "two different nodes share one hash"


def _begins(low: Ints, high: Ints, before: Hashes, after: Hashes, lowest: Flags) -> Flags:
    """[N] whether a node begins a span.

    A node goes on with the span of the node below it iff that one is the only node ever found
    below it, it is the only one ever found above that one, and its KV was computed on it.
    """
    pairs = np.unique(low * len(before) + high)
    low, high = pairs // len(before), pairs % len(before)
    fresh = before[high] == after[low]
    alone = (np.bincount(low, minlength=len(before))[low] == 1) & (
        np.bincount(high, minlength=len(before))[high] == 1
    )
    begins = lowest.copy()
    begins[high[~(fresh & alone)]] = True
    return begins


def _links(passes: Sequence[PassEntries], node: Ints) -> tuple[Ints, Ints]:
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


def _heads(low: Ints, high: Ints, begins: Flags) -> Ints:
    """[N] the node that begins the span of each node."""
    head = np.arange(len(begins))
    goes_on = ~begins[high]
    head[high[goes_on]] = low[goes_on]
    while True:
        further = head[head]
        if np.array_equal(further, head):
            return head
        head = further
