"""A row in parts that run one after the other, so that few activations are kept at a time.

A part is run forward; then the parts below it, each forward *and* backward, on the part's KV cut
off from its graph; then the part itself backward, with what they left in the KV's gradient. At
any moment only the parts on one way from the top hold activations.

Invariant: every span is in one part, and sees only spans of that part and of the parts above it.
The tokens on no way from the top exceed what the costliest single pass depends on (in sticky
rows: trajectory, whose passes are computed on each other). Within that limit spans stay together,
because kernels like large pieces: a row that fits it is one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynatok_online.arrays import Ints, ranges
from dynatok_online.rows.row import Row, some_shifts


@dataclass(frozen=True)
class Part:
    """Some tokens of a row, and the parts that see them."""

    row: Row
    below: Sequence[Part] = ()

    @property
    def count(self) -> int:
        """How many parts it is, with all below: so many times forward and backward are called."""
        return 1 + sum(part.count for part in self.below)


def cut_row(row: Row) -> tuple[Part, ...]:
    """The parts of a row that see nothing above them; the others hang below."""
    top = _tree(row)
    return tuple(_cut(row, top, (), max(branch.longest for branch in top)))


@dataclass(frozen=True)
class _Branch:
    """Spans that depend on each other, or on spans above, and the branches that see them."""

    spans: list[int]
    tokens: int
    below: list[_Branch]

    @property
    def longest(self) -> int:
        """Most tokens on a way down."""
        return self.tokens + max((branch.longest for branch in self.below), default=0)

    def all(self) -> list[int]:
        """Its spans, and those of all below."""
        return self.spans + [s for branch in self.below for s in branch.all()]


def _tree(row: Row) -> list[_Branch]:
    """Spans as a forest. Where one sees two branches, those become one, up to their fork."""
    count = len(row.visible)
    joined = list(range(count))  # span -> another one of its branch, or itself
    above = [-1] * count  # such a span -> one of the branch above
    for s in range(count):
        ways = [_way(int(i), joined, above) for i in np.flatnonzero(row.visible[s, :s])]
        if not ways:
            continue
        lowest = max(ways, key=len)
        if not all(way[0] in lowest for way in ways):
            common = set(lowest).intersection(*ways)
            fork = next((i for i in lowest if i in common), -1)
            joining = set().union(*ways) - common
            one = min(joining)
            for i in joining:
                joined[i] = one
            above[one], lowest = fork, [one]
        above[s] = lowest[0]

    spans: dict[int, list[int]] = {}
    for s in range(count):
        spans.setdefault(_way(s, joined, above)[0], []).append(s)
    below: dict[int, list[int]] = {}
    for one in spans:
        below.setdefault(next(iter(_way(one, joined, above)[1:]), -1), []).append(one)
    lengths = np.diff(row.bounds)

    def branch(one: int) -> _Branch:
        tokens = int(lengths[spans[one]].sum())
        return _Branch(spans[one], tokens, [branch(other) for other in below.get(one, ())])

    return [branch(one) for one in below[-1]]


def _way(s: int, joined: list[int], above: list[int]) -> list[int]:
    """From the branch of span `s` to the top."""
    out = []
    while s >= 0:
        while joined[s] != s:
            s = joined[s]
        out.append(s)
        s = above[s]
    return out


def _cut(row: Row, branches: Sequence[_Branch], above: Sequence[int], room: int) -> list[Part]:
    """Parts of at most `room` tokens, what is below them included; whole branches if they fit."""
    lengths = np.diff(row.bounds)
    parts: list[Part] = []
    together: list[int] = []
    for branch in branches:
        spans = branch.all()
        size = int(lengths[spans].sum())
        if size > room:
            own, below = branch.spans, branch.below
            while len(below) == 1:
                own, below = own + below[0].spans, below[0].below
            left = room - int(lengths[own].sum())
            parts.append(Part(_part_row(row, own, above), _cut(row, below, [*above, *own], left)))
        elif size + int(lengths[together].sum()) > room:
            parts.append(Part(_part_row(row, together, above)))
            together = spans
        else:
            together = together + spans
    if together:
        parts.append(Part(_part_row(row, together, above)))
    return parts


def _part_row(row: Row, own: Sequence[int], above: Sequence[int]) -> Row:
    """The spans `own` as a row that sees the spans `above`."""
    spans: Ints = np.array([*above, *sorted(own)], np.int64)
    lengths = np.diff(row.bounds)[spans]
    tokens = ranges(row.bounds, spans)
    before = int(lengths[: len(above)].sum())
    mine = tokens[before:]
    place = np.full(row.tokens, -1)
    place[mine] = np.arange(len(mine))
    at = place[row.loss_positions]
    targets = np.flatnonzero(at >= 0)
    return Row(
        input_ids=row.input_ids[mine],
        position_ids=row.position_ids[mine],
        bounds=np.concatenate([[0], np.cumsum(lengths)]),
        visible=row.visible[np.ix_(spans, spans)],
        loss_positions=at[targets],
        **row.of_targets(targets),
        above=row.position_ids[tokens[:before]],
        shifts=some_shifts(row.shifts, spans),
    )
