"""Blocks of KV whose text has moved: what they are made of, and so what they are called.

A slot that grows or shrinks moves what stands behind it, mostly by no whole block. The block at a
place is then put together from parts of blocks that the pass before held elsewhere, their keys
turned on by as many positions as they moved. The recorder and the engine list these parts alike,
each by its own names; a block made of the same parts has the same name. One that is a whole block
where it was computed is that block, and has its name: text that moves back is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dynatok_online.arrays import Ints

Run = tuple[int, int, int]
"""Positions `start .. stop` of a pass stood at `start - step .. stop - step` of the one before."""


class Source(NamedTuple):
    """Places `start .. stop` of block `block` of the pass before, which have moved by `step`."""

    block: int
    start: int
    stop: int
    step: int


class Part(NamedTuple):
    """Places `start .. stop` of a block that was computed, moved by `shift` since."""

    name: bytes
    """Of that block."""
    start: int
    stop: int
    shift: int
    origin: int = 0
    """The pass that computed it, where that is known."""


def runs_of(places: Ints) -> tuple[Run, ...]:
    """[N] former places, -1 for none, as runs of one step each."""
    at = np.arange(len(places))
    step = np.where(places >= 0, at - places, np.iinfo(np.int64).max)
    cuts = [0, *(np.flatnonzero(np.diff(step)) + 1).tolist(), len(places)]
    return tuple((a, b, int(step[a])) for a, b in pairwise(cuts) if b > a and places[a] >= 0)


def places_of(runs: Sequence[Run], count: int, held: int) -> Ints:
    """[count] former places below `held`, -1 for none: the inverse of `runs_of`."""
    places = np.full(count, -1)
    for start, stop, step in runs:
        stop = min(stop, count)
        places[start:stop] = np.arange(start, stop) - step
    places[places >= held] = -1
    return places


def sources_of(places: Ints, size: int) -> list[tuple[Source, ...]]:
    """Of each full block the places that it comes from; none, where a token came from nowhere."""
    out: list[tuple[Source, ...]] = []
    for j in range(len(places) // size):
        mine = places[j * size : (j + 1) * size]
        if (mine < 0).any():
            out.append(())
            continue
        cuts = np.flatnonzero((np.diff(mine) != 1) | (mine[1:] % size == 0)) + 1
        edges = [0, *cuts.tolist(), size]
        out.append(
            tuple(
                Source(
                    int(mine[a]) // size,
                    int(mine[a]) % size,
                    int(mine[b - 1]) % size + 1,
                    j * size + a - int(mine[a]),
                )
                for a, b in pairwise(edges)
            )
        )
    return out


def parts_of(
    sources: Sequence[Source], of_block: Callable[[int], tuple[Part, ...]]
) -> tuple[Part, ...]:
    """What a block with these sources is made of, if `of_block` says it of those of before."""
    out: list[Part] = []
    for block, start, stop, step in sources:
        at = 0
        for part in of_block(block):
            length = part.stop - part.start
            low, high = max(start - at, 0), min(stop - at, length)
            at += length
            if low >= high:
                continue
            one = part._replace(
                start=part.start + low, stop=part.start + high, shift=part.shift + step
            )
            last = out[-1] if out else None
            if last is not None and last == one._replace(start=last.start, stop=one.start):
                out[-1] = one._replace(start=last.start)
            else:
                out.append(one)
    return tuple(out)


def is_whole(parts: Sequence[Part], size: int) -> bool:
    """Whether it is a block where it was computed."""
    first = parts[0]
    return (first.start, first.stop, first.shift) == (0, size, 0)
