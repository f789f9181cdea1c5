"""Statistics of earlier steps: what "the top fifth" means to a token that is looked at alone.

A quantile of a batch would make a token's loss depend on which rows, micro batches and ranks the
others are in. So objectives compare with *earlier* steps: each tells this table its values, step by
step, and reads quantiles, means and extremes of what all ranks told it before this step. In the
first step there are none (None), and nothing is selected.

Values are counted in bins with log-spaced borders (5 % wide, by sign; magnitudes from 1e-6 to 1e4),
so the table adds up over ranks, and is a few kilobytes in a checkpoint. Each step a tenth of it is
forgotten: about ten steps count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 0.9
"""What of the counts is kept at each step."""
PER_DECADE = 48
DECADES = (-6, 4)
_SIDE = PER_DECADE * (DECADES[1] - DECADES[0])
_BINS = 2 * _SIDE + 1
"""Negative values, the largest magnitude first; nearly zero; positive ones."""
_MOMENTS = 3
"""Behind the bins: count, sum, sum of squares."""


class Lagged:
    """Statistics by name; `names` are all that will ever be told, the same on all ranks."""

    def __init__(self, names: Sequence[str] = (), device: Any = "cpu") -> None:
        self.names = tuple(dict.fromkeys(names))
        self._device = device
        self._now: Any = None
        """[names, bins and moments] told since the last step, on this rank."""
        self._before: list[list[float]] = [[0.0] * (_BINS + _MOMENTS) for _ in self.names]
        self._found: dict[tuple[str, float], float] = {}
        self.listening = True
        """Whether what is told counts: not while a model is only evaluated."""

    def watch(self, name: str, values: Tensor) -> None:
        """Tell [m] values of this step; those that are not finite do not count."""
        if not self.listening:
            return
        import torch

        at = self.names.index(name)
        if self._now is None:
            self._now = torch.zeros(
                len(self.names), _BINS + _MOMENTS, dtype=torch.float64, device=self._device
            )
        known = values.detach()[values.detach().isfinite()].double()
        self._now[at, :_BINS] += torch.bincount(_bins(known), minlength=_BINS)
        self._now[at, _BINS] += len(known)
        self._now[at, _BINS + 1] += known.sum()
        self._now[at, _BINS + 2] += known.square().sum()

    def step(self, total: Callable[[Tensor], Tensor] = lambda one: one) -> None:
        """An optimizer step is over. `total`: sums a tensor over ranks."""
        if not self.names:
            return
        import torch

        now = self._now
        if now is None:
            now = torch.zeros(
                len(self.names), _BINS + _MOMENTS, dtype=torch.float64, device=self._device
            )
        told = total(now).tolist()
        self._before = [
            [KEEP * a + b for a, b in zip(old, new, strict=True)]
            for old, new in zip(self._before, told, strict=True)
        ]
        self._now = None
        self._found = {}

    def quantile(self, name: str, share: float) -> float | None:
        """The value below which `share` of the earlier ones are; None in the first step."""
        key = name, share
        if key not in self._found:
            row = self._before[self.names.index(name)]
            if not row[_BINS]:
                return None
            left = share * sum(row[:_BINS])
            at = next((i for i in range(_BINS) if (left := left - row[i]) <= 0), _BINS - 1)
            self._found[key] = _value(at)
        return self._found[key]

    def median(self, name: str) -> float | None:
        """Half of the earlier values are below."""
        return self.quantile(name, 0.5)

    def low(self, name: str) -> float | None:
        """About the lowest of the earlier values: all but one in a thousand are above."""
        return self.quantile(name, 0.001)

    def high(self, name: str) -> float | None:
        """About the highest of the earlier values: all but one in a thousand are below."""
        return self.quantile(name, 0.999)

    def mean(self, name: str) -> float | None:
        """Mean of the earlier values; None in the first step."""
        row = self._before[self.names.index(name)]
        return row[_BINS + 1] / row[_BINS] if row[_BINS] else None

    def std(self, name: str) -> float | None:
        """Standard deviation of the earlier values; None in the first step."""
        row = self._before[self.names.index(name)]
        if not row[_BINS]:
            return None
        mean = row[_BINS + 1] / row[_BINS]
        return math.sqrt(max(0.0, row[_BINS + 2] / row[_BINS] - mean * mean))

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint, between two steps. JSON."""
        return dict(zip(self.names, self._before, strict=True))

    def restore(self, state: dict[str, list[float]]) -> None:
        """Go on from `state`; what it does not know begins anew."""
        self._found = {}
        for at, name in enumerate(self.names):
            if len(state.get(name, ())) == _BINS + _MOMENTS:
                self._before[at] = list(state[name])


def _bins(values: Tensor) -> Tensor:
    magnitude = values.abs().clamp(10.0 ** DECADES[0], 10.0 ** DECADES[1])
    place = ((magnitude.log10() - DECADES[0]) * PER_DECADE).long().clamp(0, _SIDE - 1) + 1
    place = place.where(values.abs() >= 10.0 ** DECADES[0], 0)
    return _SIDE + place * values.sign().long()


def _value(at: int) -> float:
    """The middle of a bin."""
    place = at - _SIDE
    if not place:
        return 0.0
    return math.copysign(10.0 ** (DECADES[0] + (abs(place) - 0.5) / PER_DECADE), place)
