"""Intervals of shares."""

from __future__ import annotations

import pytest

from benchmarks._share import wilson


def test_it_is_wilsons() -> None:
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96, p = 0.8, n = 10
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
