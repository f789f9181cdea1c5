"""How well, how soon and how fluently a response follows requirements that changed.

All lengths are characters of the text; who knows its tokens converts them. A text in which a
verifier found nothing to judge is no evidence: its score is None and enters no average.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from dynatok_online.requirements import Requirement

SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*")


@dataclass(frozen=True)
class Followed:
    """What came of one requirement in the text written under it."""

    score: float | None
    """Share of the units that hold."""
    latency: int | None
    """Characters from the text's beginning to the first unit of the first compliant sentence;
    None where there is none. A sentence that began before counts with its part in this text."""


def follow(wanted: Requirement, text: str, *, before: str = "", after: str = "") -> Followed:
    """Judge `text`, which stands between `before` and `after`."""
    verdict = wanted.verify(text, before=before, after=after)
    latency = None
    for match in SENTENCE.finditer(text):
        units = [u for u in verdict.units if match.start() <= u.start < match.end()]
        if units and all(unit.ok for unit in units):
            latency = units[0].start
            break
    return Followed(verdict.score, latency)


def repetition(text: str, size: int = 4) -> float:
    """Share of the runs of `size` words that stood in the text before; 0 for a short text."""
    words = text.lower().split()
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval (Student's t), in the values' unit."""

    mean: float
    half: float
    """Half the interval's width; NaN for a single value."""
    lowest: float
    highest: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}{self._around}"

    @property
    def signed(self) -> str:
        """The same of a difference: with its sign."""
        return f"{self.mean:+.3f}{self._around}"

    @property
    def _around(self) -> str:
        return "" if math.isnan(self.half) else f" ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, and how sure it is. ValueError for no value."""
    count = len(values)
    if not count:
        raise ValueError("an interval needs at least one value")
    mean = sum(values) / count
    half = math.nan
    if count > 1:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return Interval(mean, half, min(values), max(values), count)


def half_width(one: Interval) -> float | None:
    """Half the width of an interval, for JSON: None where it is unknown."""
    return None if math.isnan(one.half) else one.half
