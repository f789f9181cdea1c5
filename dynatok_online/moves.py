"""Where the text of a pass stood in the pass before: what a slot that grows or shrinks moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynatok_online.arrays import Ints
from dynatok_online.trajectory import RESPONSE, TokenIds


def former_places(
    before: Sequence[int],
    begun: int,
    held: int,
    after: Sequence[int],
    at: int,
    pieces: Sequence[TokenIds],
) -> Ints:
    """[N] at which position the pass before has KV of each token that a pass feeds; -1: at none.

    The pass before had layout `before` and began at response index `begun`; it has KV at `held`
    positions. This one has layout `after`, and begins at response index `at`. A piece that is still
    in its place of the layout stands where it stood, and moves with what stands before it.

    The template "Write {{s}}: {{response}}", one character per token, "a" becoming "bcd" after "xy"
    was sampled (of which "y" has no KV yet):

        before  W r i t e _ a : x y      after  W r i t e _  b  c  d : x  y
                0 1 2 3 4 5 6 7 8                0 1 2 3 4 5 -1 -1 -1 7 8 -1
    """
    widths = [begun if piece == RESPONSE else len(pieces[piece]) for piece in before]
    new_widths = [at if piece == RESPONSE else len(pieces[piece]) for piece in after]
    places = np.full(sum(new_widths), -1)
    new_at = old_at = 0
    for old, new, old_width, new_width in zip(before, after, widths, new_widths, strict=True):
        if old == new:
            # Where nothing stands behind it, what was sampled follows what was fed.
            whole = new != RESPONSE or after[-1] == RESPONSE
            count = max(0, min(new_width if whole else old_width, held - old_at))
            places[new_at : new_at + count] = old_at + np.arange(count)
        new_at += new_width
        old_at += old_width
        if new == RESPONSE and after[-1] != RESPONSE:
            break  # what stands behind the response so far is read after other tokens now
    return places
