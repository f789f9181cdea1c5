"""The ghosts of a row: run after it, forward only, on the KV that it left.

The passes that a row's ghosts go on with are mostly in the row already. Where a trajectory was
split between rows, the spans of such a pass that the row lacks are run with the ghosts.
"""

from __future__ import annotations

import numpy as np

from dynatok_online.arrays import Flags, Int32s, Ints, ranges
from dynatok_online.rows.bins import closure
from dynatok_online.rows.row import GhostRow, Row, some_shifts
from dynatok_online.spans.build import Spans


def ghost_row(spans: Spans, above: Ints, targets: Ints, wanted: Int32s) -> GhostRow | None:
    """What predicts `targets` (of the M of `spans`) as if no edit had come; None where no ghost
    does. `above`: the spans of the row, in its order; `wanted`: [M] token ids of all targets.
    """
    ghosts = spans.ghosts
    if ghosts is None:
        return None
    rank = np.full(len(spans.loss_positions), -1)
    rank[targets] = np.arange(len(targets))
    made = np.flatnonzero(rank[ghosts.targets] >= 0)
    if not len(made):
        return None
    need = closure(spans, ghosts.spans[ranges(ghosts.bounds, np.unique(ghosts.owner[made]))])
    own = np.setdiff1d(need, above)
    tokens = ranges(spans.bounds, own)
    place = np.full(len(spans.input_ids), -1)
    place[tokens] = np.arange(len(tokens))
    both = np.concatenate([above, own])
    before = ranges(spans.bounds, above)
    none, count = np.zeros(0, np.int64), len(made)
    predicted = ghosts.targets[made]
    row = Row(
        input_ids=spans.input_ids[tokens],
        position_ids=spans.position_ids[tokens],
        bounds=np.concatenate([[0], np.cumsum(spans.lengths[both])]),
        visible=visible_spans(spans, both),
        loss_positions=place[ghosts.loss_positions[made]],
        targets=wanted[predicted],
        weights=np.zeros(count, np.float32),
        logprobs=np.full(count, np.nan, np.float32),
        versions=np.full(count, -1, np.int64),
        trajectory=np.concatenate([none, spans.reader_trajectory[spans.loss_reader[predicted]]]),
        response_index=spans.response_index[predicted],
        above=spans.position_ids[before],
        shifts=span_shifts(spans, both),
    )
    return GhostRow(row, rank[predicted])


def visible_spans(spans: Spans, need: Ints) -> Flags:
    """[S, S] which of the spans `need` see which of them."""
    rank = np.full(len(spans.bounds) - 1, -1)
    rank[need] = np.arange(len(need))
    visible = np.eye(len(need), dtype=bool)
    counts = spans.seen_bounds[need + 1] - spans.seen_bounds[need]
    seen = spans.seen[ranges(spans.seen_bounds, need)]
    visible[np.repeat(np.arange(len(need)), counts), rank[seen]] = True
    return visible


def span_shifts(spans: Spans, need: Ints) -> Ints | None:
    """[S, S] how far what the spans `need` see of them has moved; None where nothing has."""
    if spans.seen_shifts is None:
        return None
    rank = np.full(len(spans.bounds) - 1, -1)
    rank[need] = np.arange(len(need))
    shifts = np.zeros((len(need), len(need)), np.int64)
    counts = spans.seen_bounds[need + 1] - spans.seen_bounds[need]
    which = ranges(spans.seen_bounds, need)
    shifts[np.repeat(np.arange(len(need)), counts), rank[spans.seen[which]]] = spans.seen_shifts[
        which
    ]
    return shifts if shifts.any() else None


def alone(row: Row) -> GhostRow | None:
    """The ghosts of `row` as a row that sees no other: what they stand on is in it."""
    if row.ghosts is None:
        return None
    ghosts = row.ghosts.row
    first = int(np.searchsorted(ghosts.bounds[:-1], row.tokens))
    spans = np.flatnonzero(ghosts.visible[first:].any(0))
    while True:
        further = np.flatnonzero(ghosts.visible[spans].any(0))
        if len(further) == len(spans):
            break
        spans = further
    tokens = ranges(ghosts.bounds, spans)
    place = np.full(row.tokens + ghosts.tokens, -1)
    place[tokens] = np.arange(len(tokens))
    ids = np.concatenate([row.input_ids, ghosts.input_ids])
    positions = np.concatenate([row.position_ids, ghosts.position_ids])
    return GhostRow(
        Row(
            **{
                **vars(ghosts),
                "input_ids": ids[tokens],
                "position_ids": positions[tokens],
                "bounds": np.concatenate([[0], np.cumsum(np.diff(ghosts.bounds)[spans])]),
                "visible": ghosts.visible[np.ix_(spans, spans)],
                "loss_positions": place[row.tokens + ghosts.loss_positions],
                "above": np.zeros(0, np.int32),
                "shifts": some_shifts(ghosts.shifts, spans),
            }
        ),
        row.ghosts.targets,
    )
