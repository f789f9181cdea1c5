"""Kinds of arrays, and tables of lists: the lists one after the other, and where each begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


def stretches(starts: Ints, stops: Ints) -> Ints:
    """`concatenate([arange(a, b) for a, b in zip(starts, stops)])`, at once."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(stops - ends, lengths)


def ranges(bounds: Ints, which: Ints) -> Ints:
    """Indices of everything in the lists `which` of a table whose lists begin at `bounds`."""
    return stretches(bounds[which], bounds[which + 1])


def mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64: a bijection of 64-bit words that looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
