"""Keys that have moved since they were computed: turned on, as keys of their own.

A span may see another at a position other than that one was computed at, because a slot between
them grew or shrank. Every pair (span, shift) that is seen becomes one more span of keys without
queries, as those that were run before are (`parts`): kernels need to know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynatok_online.arrays import Ints, ranges
from dynatok_online.attention.copies import to_device
from dynatok_online.rows.row import Row, empty_row

if TYPE_CHECKING:
    from dynatok_online.attention.layout import Layout
    from dynatok_online.attention.turning import Turning


@dataclass(frozen=True)
class Moved:
    """The V keys of a row that have moved, and the row as it sees them."""

    row: Row
    """Its `above` are these keys, then the row's own; tokens are left out."""
    index: Ints
    """[V] which keys of the row they are."""
    shifts: Ints
    """[V] how far each has moved."""

    def add(
        self, key: torch.Tensor, value: torch.Tensor, turning: Turning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, G, A + N, D] -> [1, G, V + A + N, D]: keys turned on, and their values."""
        index = to_device(self.index, key.device)
        turned = turning.turn(key[:, :, index], to_device(self.shifts, key.device))
        return torch.cat([turned, key], 2), torch.cat([value[:, :, index], value], 2)


def moved_keys(layout: Layout, shifts: Ints) -> Moved:
    """`shifts` [S, S]: how far what a span sees has moved."""
    own = np.arange(len(layout.visible)) >= layout.first
    seen = np.tril(layout.visible) & own[:, None]
    apart = seen & (shifts != 0)
    readers, spans = np.nonzero(apart)
    pairs, which = np.unique(
        np.stack([spans, shifts[readers, spans]], 1), axis=0, return_inverse=True
    )
    lengths = np.diff(layout.bounds)[pairs[:, 0]]
    index = ranges(layout.bounds, pairs[:, 0])
    by = np.repeat(pairs[:, 1], lengths)
    count = len(pairs)
    visible = np.eye(count + len(seen), dtype=bool)
    visible[count:, count:] = layout.visible & ~apart
    visible[count + readers, which.ravel()] = True
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    above = np.concatenate([layout.positions[index] + by, layout.positions[: layout.above]])
    row = replace(
        empty_row(),
        input_ids=np.zeros(layout.tokens, np.int32),
        position_ids=layout.positions[layout.above :].astype(np.int32),
        bounds=np.concatenate([bounds[:-1], layout.bounds + bounds[-1]]),
        visible=visible,
        above=above.astype(np.int32),
    )
    return Moved(row, index, by)
