"""How many actors a learner can use: more while it waits for trajectories, fewer when it does not.

The number is looked at once in `WINDOW` seconds, over the steps of that time. Between the two
thresholds nothing changes: an actor takes a while to start, and is not to come and go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocol.run.metrics import Tail

WINDOW: Final = 60.0
"""Seconds between two decisions: longer than an engine takes to start."""
MUCH: Final = 0.3
"""Share of a step's time that the learner waits above which one more actor helps."""
HARDLY: Final = 0.03
"""Share below which one less does no harm."""
_STEPS: Final = 3
"""Steps that a decision needs."""


class Scale:
    """Reads the learner's times from `metrics.jsonl`."""

    def __init__(self, run_dir: Path, least: int, most: int, window: float = WINDOW) -> None:
        self._tail = Tail(run_dir)
        self._least = least
        self._most = most
        self._window = window
        self._next: float | None = None
        self._steps: list[tuple[float, float]] = []
        """(seconds, of which waited) of the steps since the last decision."""

    def change(self, now: float, count: int) -> int:
        """1: an actor more; -1: one less; 0: as it is. `count`: actors that were asked for."""
        if self._least >= self._most:
            return 0
        for record in self._tail.read():
            if record.get("process") == "learner" and record.get("seconds_step"):
                waited = float(record.get("seconds_wait_for_batch") or 0.0)
                self._steps.append((float(record["seconds_step"]), waited))
        if self._next is None:
            self._next = now + self._window
        if now < self._next or len(self._steps) < _STEPS:
            return 0
        share = sum(waited for _, waited in self._steps) / sum(all for all, _ in self._steps)
        self._next, self._steps = now + self._window, []
        if share > MUCH and count < self._most:
            return 1
        return -1 if share < HARDLY and count > self._least else 0
