"""What raw results say: stale share, decisions lost, and how sure either is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynatok_online.adherence.measures import interval

Line = dict[str, Any]

EFFECT = 0.5
"""Nats that an edit has to move the log-odds by, under full recomputation, to be counted."""
FEWEST = 8
"""Items with an effect below which no share is given."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Odds:
    """[n] log-odds of some items under three conditions, and who decided right."""

    unedited: np.ndarray
    exact: np.ndarray
    sticky: np.ndarray
    exact_right: np.ndarray
    sticky_right: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """[n] bool: the edit has an effect under full recomputation."""
        return self.exact - self.unedited > EFFECT

    @property
    def shares(self) -> np.ndarray:
        """[kept] the stale share of each item."""
        effect = (self.exact - self.unedited)[self.kept]
        return 1 - (self.sticky - self.unedited)[self.kept] / effect

    @property
    def median(self) -> float:
        """The median stale share; NaN for too few items."""
        return float(np.median(self.shares)) if self.kept.sum() >= FEWEST else math.nan

    @property
    def ratio(self) -> float:
        """The stale share of the summed effects; NaN for too few items."""
        kept = self.kept
        if kept.sum() < FEWEST:
            return math.nan
        lost = (self.exact - self.sticky)[kept].sum()
        return float(lost / (self.exact - self.unedited)[kept].sum())

    def between(self, seed: int = 0) -> tuple[float, float]:
        """A 95 % interval of the median, by bootstrap over items."""
        shares = self.shares
        if len(shares) < FEWEST:
            return math.nan, math.nan
        rng = np.random.default_rng(seed)
        drawn = np.median(rng.choice(shares, (RESAMPLES, len(shares))), axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return float(low), float(high)

    @property
    def lost(self) -> tuple[int, int]:
        """Decisions that are right under full recomputation and wrong here, and how many are."""
        right = self.exact_right.astype(bool)
        return int((right & ~self.sticky_right.astype(bool)).sum()), int(right.sum())


def gather(lines: Iterable[Line], condition: str = "sticky") -> Odds:
    """The items of some cells as one."""
    rows: list[list[Any]] = [[], [], [], [], []]
    for line in lines:
        odds, right = line["odds"], line["right"]
        for into, values in zip(
            rows,
            (
                odds["unedited"],
                odds["exact"],
                odds[condition],
                right["exact"],
                right[condition],
            ),
            strict=True,
        ):
            into.extend(values)
    return Odds(*(np.array(one, float) for one in rows))


@dataclass(frozen=True)
class Figure:
    """A number over seeds (t interval) or, for a single one, over items (bootstrap)."""

    value: float
    low: float
    high: float
    seeds: int
    kept: int
    items: int
    lost: tuple[int, int]

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"no effect ({self.kept} of {self.items})"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def over_seeds(
    lines: Sequence[Line],
    condition: str = "sticky",
    measure: Callable[[Odds], float] = lambda odds: odds.median,
) -> Figure:
    """The measure of some cells of one arm and step."""
    seeds = sorted({line["seed"] for line in lines})
    found = [gather([one for one in lines if one["seed"] == seed], condition) for seed in seeds]
    kept, items = sum(int(one.kept.sum()) for one in found), sum(len(one.kept) for one in found)
    lost = (sum(one.lost[0] for one in found), sum(one.lost[1] for one in found))
    values = [value for one in found if not math.isnan(value := measure(one))]
    if not values:
        return Figure(math.nan, math.nan, math.nan, 0, kept, items, lost)
    if len(values) == 1:
        low, high = found[0].between() if len(found) == 1 else (math.nan, math.nan)
        return Figure(values[0], low, high, 1, kept, items, lost)
    one_interval = interval(values)
    half = one_interval.half
    mean = one_interval.mean
    return Figure(mean, mean - half, mean + half, len(values), kept, items, lost)


class Results:
    """The lines of a raw file, one per cell: a cell that was measured twice counts once."""

    def __init__(self, lines: Iterable[Line]) -> None:
        known: dict[tuple[object, ...], Line] = {}
        for line in lines:
            key = tuple(
                line.get(name)
                for name in ("kind", "arm", "seed", "step", "family", "distance", "edits")
            )
            known[key] = line
        self.lines = list(known.values())

    def cells(
        self,
        arm: str,
        step: int,
        family: str | None = None,
        distance: Callable[[int], bool] = lambda _: True,
        edits: str = "ab",
    ) -> list[Line]:
        """Cells of one arm after `step` steps."""
        return [
            one
            for one in self.lines
            if one["kind"] == "cell"
            and one["arm"] == arm
            and one["step"] == step
            and one["edits"] == edits
            and (family is None or one["family"] == family)
            and distance(one["distance"])
        ]

    def steps(self, arm: str) -> list[int]:
        """The steps after which an arm was measured."""
        return sorted(
            {one["step"] for one in self.lines if one["kind"] == "cell" and one["arm"] == arm}
        )

    def last(self, arm: str) -> int | None:
        """The last of them."""
        return max(self.steps(arm), default=None)

    def distances(self, arm: str, step: int, edits: str = "ab") -> list[int]:
        """Distances that were measured."""
        return sorted({one["distance"] for one in self.cells(arm, step, edits=edits)})

    def of(self, kind: str, **wanted: object) -> list[Line]:
        """Lines of another kind."""
        return [
            one
            for one in self.lines
            if one["kind"] == kind and all(one.get(name) == v for name, v in wanted.items())
        ]
