"""Spans to rows: which passes are trained together, under a token budget.

Invariant: over all rows of a batch every response token is a target exactly once, and a row
holds every span that its targets depend on. Within a row token i sees token j iff `j <= i` and
`visible[span(i), span(j)]`. Trajectories that share a prefix are put in one row as far as the
budget allows; what they share is computed once there.

Strategies: `packed` (spans), `truncated`, `snapshot` and `static` (see `baselines`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynatok_online.arrays import Flags, Ints, ranges
from dynatok_online.rows.apart import Named, set_apart
from dynatok_online.rows.bins import Unit, fill_bins, largest_pass, union
from dynatok_online.rows.ghosts import ghost_row, span_shifts, visible_spans
from dynatok_online.rows.row import Row, empty_row, some_shifts
from dynatok_online.spans.baselines import snapshot_spans, static_spans, truncated_spans
from dynatok_online.spans.build import Spans, build_spans
from dynatok_online.trajectory import Trajectory

__all__ = ["PAIR_COST", "STRATEGIES", "Row", "empty_row", "plan_ranks", "plan_rows"]

STRATEGIES: dict[str, Callable[[Sequence[Trajectory]], Spans]] = {
    "packed": build_spans,
    "truncated": truncated_spans,
    "snapshot": snapshot_spans,
    "static": static_spans,
}

Columns = Mapping[str, npt.NDArray[np.float32]]

PAIR_COST = 1 / 6144
"""Default cost of one (query, key) pair, in units of one token's linear layers.

A layer of width h spends about 24 h^2 FLOPs on a token and 4 h on a pair: 1 / (6 h), h = 1024.
"""


def plan_rows(
    trajectories: Sequence[Trajectory],
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    max_tokens: int = 16384,
    *,
    strategy: str = "packed",
    ghosts: bool = False,
    columns: Sequence[Columns] | None = None,
) -> list[Row]:
    """Rows of at most `max_tokens` tokens that hold every response token as a target once.

    `weights`: one [R] array per trajectory (see `objectives`); default: 1 everywhere. `columns`:
    per trajectory, other [R] arrays by name, the same names everywhere. A trajectory that exceeds
    the budget alone is split between its passes. Raises ValueError where a single pass does.
    `ghosts`: rows also hold theirs (see `spans.ghosts`), which are not counted by the budget: they
    are run without gradient.
    """
    (rows,) = plan_ranks(
        trajectories, weights, max_tokens, strategy=strategy, ghosts=ghosts, columns=columns
    )
    return rows


def needed_tokens(trajectory: Trajectory, strategy: str = "packed") -> int:
    """The smallest row budget with which a trajectory can be planned."""
    return largest_pass(STRATEGIES[strategy]([trajectory]))


def plan_ranks(
    trajectories: Sequence[Trajectory],
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    max_tokens: int = 16384,
    *,
    strategy: str = "packed",
    ranks: int = 1,
    pair_cost: float = PAIR_COST,
    ghosts: bool = False,
    columns: Sequence[Columns] | None = None,
    apart: bool = False,
) -> list[list[Row]]:
    """`plan_rows` for several ranks: as many rows for each, balanced by cost. `apart`: response
    tokens of different trajectories are never merged, and `Row.written` tells which is which.

    Every rank that plans the same batch gets the same plan. `rows[rank][step]`: the rows of one
    step cost about the same (linear layers by token, attention by pair), so ranks that meet at
    every step wait little. Where there are too few passes, `empty_row` fills up.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    if weights is not None:
        _check_weights(trajectories, weights)
    names = list(columns[0]) if columns else []
    for name in names:
        _check_weights(trajectories, [one[name] for one in columns or ()], name)
    if ghosts and strategy != "packed":
        raise ValueError(
            f"strategy {strategy!r} has no ghosts: they share the KV of spans; use packed"
        )
    given = set_apart(trajectories) if apart else trajectories
    if ghosts:
        spans = build_spans(given, ghosts=True)
    else:
        spans = STRATEGIES[strategy](given)
    bins = fill_bins(spans, trajectories, max_tokens, ranks, pair_cost)
    aligned = _align(spans, trajectories, weights, columns or (), names)
    rows = [_row(spans, units, aligned) for units in bins]
    if apart:
        named = Named(trajectories)
        rows = [named.row(row) for row in rows]
    rows.sort(key=lambda row: row.tokens + pair_cost * row.pairs, reverse=True)
    rows += [empty_row()] * (-len(rows) % ranks)
    # A snake: the rank that got the costliest row of one step gets the cheapest of the next.
    steps = [rows[i : i + ranks] for i in range(0, len(rows), ranks)]
    return [
        [step[rank if i % 2 == 0 else ranks - 1 - rank] for i, step in enumerate(steps)]
        for rank in range(ranks)
    ]


def _check_weights(
    trajectories: Sequence[Trajectory],
    weights: Sequence[npt.NDArray[np.float32]],
    what: str = "weights",
) -> None:
    if len(weights) != len(trajectories):
        raise ValueError(f"{len(trajectories)} trajectories but {len(weights)} arrays of {what}")
    for trajectory, one in zip(trajectories, weights, strict=True):
        if len(one) != len(trajectory.response):
            raise ValueError(
                f"trajectory {trajectory.trajectory_id}: {len(trajectory.response)} response "
                f"tokens but {len(one)} {what}; they must be aligned"
            )


@dataclass(frozen=True)
class _Aligned:
    """[M] per target of the batch, in the order of `Spans.loss_positions`."""

    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    logprobs: npt.NDArray[np.float32]
    versions: Ints
    trajectory: Ints
    columns: Columns = field(default_factory=dict)


def _align(
    spans: Spans,
    trajectories: Sequence[Trajectory],
    weights: Sequence[npt.NDArray[np.float32]] | None,
    columns: Sequence[Columns],
    names: Sequence[str],
) -> _Aligned:
    lengths = [len(one.response) for one in trajectories]
    trajectory = spans.reader_trajectory[spans.loss_reader]
    at = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)[trajectory]
    at += spans.response_index
    if weights is None:
        weights = [np.ones(n, np.float32) for n in lengths]
    empty = [np.zeros(0, np.int32)]
    return _Aligned(
        targets=np.concatenate(empty + [one.response for one in trajectories])[at],
        weights=np.concatenate(empty + list(weights))[at].astype(np.float32),
        logprobs=np.concatenate(empty + [one.logprobs for one in trajectories])[at].astype(
            np.float32
        ),
        versions=np.concatenate(empty + [one.versions() for one in trajectories])[at],
        trajectory=trajectory,
        columns={
            name: np.concatenate([one[name] for one in columns])[at].astype(np.float32)
            for name in names
        },
    )


def _row(spans: Spans, units: Sequence[Unit], aligned: _Aligned) -> Row:
    need = union(units)
    visible = visible_spans(spans, need)
    order = _order(spans, need, visible)
    need, visible = need[order], visible[order][:, order]
    tokens = ranges(spans.bounds, need)
    lengths = spans.lengths[need]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    place = np.full(len(spans.input_ids), -1)
    place[tokens] = np.arange(len(tokens))
    wanted = np.zeros(len(spans.reader_trajectory), bool)
    for unit in units:
        wanted[unit.readers] = True
    targets = np.flatnonzero(wanted[spans.loss_reader])
    positions = spans.position_ids[tokens]
    ghosts = ghost_row(spans, need, targets, aligned.targets)
    bounds, visible, shifts = _join(bounds, visible, positions, span_shifts(spans, need))
    return Row(
        input_ids=spans.input_ids[tokens],
        position_ids=positions,
        bounds=bounds,
        visible=visible,
        loss_positions=place[spans.loss_positions[targets]],
        targets=aligned.targets[targets],
        weights=aligned.weights[targets],
        logprobs=aligned.logprobs[targets],
        versions=aligned.versions[targets],
        trajectory=aligned.trajectory[targets],
        response_index=spans.response_index[targets],
        shifts=shifts,
        ghosts=ghosts,
        columns={name: one[targets] for name, one in aligned.columns.items()},
    )


def _order(spans: Spans, need: Ints, visible: Flags) -> Ints:
    """An order in which what one span is seen by lies side by side, so that kernels get few and
    large pieces: depth first from each span to those computed right above it, latest first.

    In a tree all descendants of a span are then neighbours; in a sticky trajectory the slot's
    states come before the response, which is one stretch.
    """
    rank = np.full(len(spans.bounds) - 1, -1)
    rank[need] = np.arange(len(need))
    children: list[list[int]] = [[] for _ in need]
    stack: list[int] = []
    last = spans.seen_bounds[need + 1] - 1
    for i, (s, at) in enumerate(zip(need.tolist(), last.tolist(), strict=True)):
        if at < spans.seen_bounds[s]:
            stack.append(i)
        else:
            children[rank[spans.seen[at]]].append(i)
    stack.reverse()
    order = []
    while stack:
        order.append(stack.pop())
        stack += children[order[-1]]
    out = np.array(order, np.int64)
    if np.triu(visible[out][:, out], 1).any():
        return np.arange(len(need))
    return out


def _join(
    bounds: Ints, visible: Flags, positions: npt.NDArray[np.int32], shifts: Ints | None
) -> tuple[Ints, Flags, Ints | None]:
    """Joins neighbours that were cut only because of passes that are in another row."""
    if len(visible) < 2:
        return bounds, visible, shifts
    starts = bounds[1:-1]
    # b continues a: it sees a and what a sees, and whatever else sees a sees b.
    joins = (
        (positions[starts] == positions[starts - 1] + 1)
        & np.diagonal(visible, -1)
        & ((visible[1:] != visible[:-1]).sum(1) == 1)
        & ((visible[:, 1:] != visible[:, :-1]).sum(0) == 1)
    )
    if shifts is not None:
        # Both see everything where it is for the other, and are where they are for everybody.
        # What is not visible has no shift; the two see each other where they were computed.
        joins &= (shifts[1:] == shifts[:-1]).all(1) & (shifts[:, 1:] == shifts[:, :-1]).all(0)
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    return (
        np.append(bounds[first], bounds[-1]),
        visible[first][:, first],
        some_shifts(shifts, first),
    )
