"""Differences between two sets of weights: exact, small, and never more than was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from protocol.weights.base import WeightsError
from protocol.weights.delta import difference, restore


def test_a_difference_restores_the_bytes_and_is_small_where_little_changed() -> None:
    old = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    new = old.copy()
    new[::97] ^= 1
    packed = difference(new.data, old.data)
    assert len(packed) < len(old) / 20
    assert bytes(restore(packed, old.data)) == new.tobytes()


def test_what_is_no_difference_is_refused() -> None:
    old = memoryview(bytes(1000))
    bomb = zstandard.ZstdCompressor().compress(bytes(10**8))
    for packed in (b"", b"nonsense", bomb, difference(memoryview(bytes(999)), old[:999])):
        with pytest.raises(WeightsError, match="a difference"):
            restore(packed, old)
