"""A row's attention as few tiles: which queries meet which keys, each pair exactly once.

Spans that see all spans before them in a stretch form a *triangle* (causal within). What is
visible outside triangles is covered by *rectangles*: a prefix seen by many branches that lie
side by side is one rectangle, however many branches there are. Kernels run per tile, and
partial softmaxes of tiles with the same query are joined by their log-sum-exp, so no pair is
computed in vain and nothing is gathered or masked.

With a sliding window, spans are first split so that none is longer than the window. Pairs of
parts that lie wholly inside it are covered as before; those that straddle its edge become
rectangles with a mask, trimmed to the queries and keys that have something to see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynatok_online.arrays import Flags, Ints
from dynatok_online.attention.layout import Layout

MIN_PART = 64
"""Windows shorter than this split spans into parts of this length all the same."""


@dataclass(frozen=True)
class Tile:
    """Queries `q0 .. q1` against keys `k0 .. k1` (indices of keys, for queries too)."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool = False
    """Query i sees keys up to itself; then both ranges are the same."""
    window: int | None = None
    """Set where some pairs of the rectangle lie outside the window."""


def cut_tiles(layout: Layout, window: int | None) -> list[Tile]:
    """Tiles that cover every visible pair once: triangles (every token in one), then others."""
    bounds, visible = layout.bounds, np.tril(layout.visible)
    if window is None:
        return _cover(bounds, visible, layout.first)
    bounds, owner = _split(bounds, min(window, max(window // 2, MIN_PART)))
    visible = np.tril(visible[owner][:, owner])
    own = int(np.searchsorted(owner, layout.first))
    visible[:own] = False
    first = layout.positions[bounds[:-1]]
    last = layout.positions[bounds[1:] - 1]
    inside = visible & (last[:, None] - first[None, :] < window)
    tiles = _cover(bounds, inside, own)
    edge = visible & ~inside & (first[:, None] - last[None, :] < window)
    for q, k in np.argwhere(edge).tolist():
        # Positions within a part are consecutive: what sees or is seen is a stretch of each.
        queries = min(int(bounds[q + 1] - bounds[q]), int(last[k] + window - first[q]))
        skipped = max(0, int(first[q] - window + 1 - first[k]))
        low = int(bounds[q])
        tiles.append(
            Tile(low, low + queries, int(bounds[k]) + skipped, int(bounds[k + 1]), window=window)
        )
    return tiles


def _split(bounds: Ints, longest: int) -> tuple[Ints, Ints]:
    """Bounds of parts of at most `longest` tokens, and the span that each is a part of."""
    lengths = np.diff(bounds)
    parts = -(-lengths // longest)
    owner = np.repeat(np.arange(len(lengths)), parts)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = bounds[owner] + index * longest
    return np.concatenate([starts, bounds[-1:]]), owner


def _cover(bounds: Ints, visible: Flags, own: int) -> list[Tile]:
    """`own`: the first span with queries."""
    rest = visible.copy()
    rest[:own] = False
    tiles = []
    low = own
    for high in range(own + 1, len(visible) + 1):
        if high == len(visible) or not visible[high, low:high].all():
            rest[low:high, low:high] = False
            start, stop = int(bounds[low]), int(bounds[high])
            tiles.append(Tile(start, stop, start, stop, causal=True))
            low = high
    tall = _rectangles(rest.T)
    wide = _rectangles(rest)
    if len(tall) <= len(wide):
        found = [(a, b, c, d) for c, d, a, b in tall]
    else:
        found = wide
    edges = bounds.tolist()
    return tiles + [Tile(edges[a], edges[b], edges[c], edges[d]) for a, b, c, d in found]


def _rectangles(matrix: Flags) -> list[tuple[int, int, int, int]]:
    """Runs of True in each line, joined over neighbouring lines that have the same run.

    Returns (line start, line stop, run start, run stop).
    """
    padded = np.zeros((matrix.shape[0], matrix.shape[1] + 2), np.int8)
    padded[:, 1:-1] = matrix
    step = np.diff(padded, axis=1)
    lines, starts = np.nonzero(step == 1)
    _, stops = np.nonzero(step == -1)
    order = np.lexsort((lines, stops, starts))
    lines, starts, stops = lines[order], starts[order], stops[order]
    found: list[tuple[int, int, int, int]] = []
    for line, start, stop in zip(lines.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if found and found[-1][1] == line and found[-1][2:] == (start, stop):
            found[-1] = (found[-1][0], line + 1, start, stop)
        else:
            found.append((line, line + 1, start, stop))
    return found
