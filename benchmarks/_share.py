"""How sure a share is."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(held: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    found = binomtest(held, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
