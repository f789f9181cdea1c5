"""Kinds of arrays, and tables of lists: the lists one after the other, and where each begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]


def stretches(starts: Ints, stops: Ints) -> Ints:
    """`concatenate([arange(a, b) for a, b in zip(starts, stops)])`, at once."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(stops - ends, lengths)


def ranges(bounds: Ints, which: Ints) -> Ints:
    """Indices of everything in the lists `which` of a table whose lists begin at `bounds`."""
    return stretches(bounds[which], bounds[which + 1])
