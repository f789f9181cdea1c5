"""Part of a row: what some of its targets stand on, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dynatok_online.arrays import Flags, ranges
from dynatok_online.rows.row import Row, some_shifts


def needed(row: Row, wanted: Flags, also: Flags) -> Row:
    """`row` with the spans that the targets `wanted` depend on, and with these targets.

    `wanted`, `also`: [M] each. Targets of `also` come along where they need no further span. Ghosts
    do not come along.
    """
    span = np.searchsorted(row.bounds, row.loss_positions, side="right") - 1
    spans = np.zeros(len(row.bounds) - 1, bool)
    spans[span[wanted]] = True
    while True:
        further = spans | row.visible[spans].any(0)
        if (further == spans).all():
            break
        spans = further
    kept = np.flatnonzero(spans)
    tokens = ranges(row.bounds, kept)
    targets = np.flatnonzero((wanted | also) & spans[span])
    place = np.full(row.tokens, -1)
    place[tokens] = np.arange(len(tokens))
    return replace(
        row,
        input_ids=row.input_ids[tokens],
        position_ids=row.position_ids[tokens],
        bounds=np.concatenate([[0], np.cumsum(np.diff(row.bounds)[kept])]),
        visible=row.visible[np.ix_(kept, kept)],
        loss_positions=place[row.loss_positions[targets]],
        **row.of_targets(targets),
        shifts=some_shifts(row.shifts, kept),
        ghosts=None,
    )
