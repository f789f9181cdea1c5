"""What a run's `metrics.jsonl` says so far: the latest numbers, and the curves.

Shared by the panel, which reads it while it grows, and by the picture, drawn at the end. The
processes choose the names; the ones that people look at are listed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protocol.run.json_files import read_json
from protocol.run.metrics import Tail

ADHERENCE = "adherence"
"""The actor's running mean, over its latest edits, of the share of the text that follows the new
requirement."""


class History:
    """Everything read so far. `update` reads what was added since."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self._tail = Tail(run_dir)
        self.latest: dict[tuple[str, str], float] = {}
        """(process, name) -> the last number."""
        self.curves: dict[tuple[str, str], list[tuple[float, int | None, float]]] = {}
        """(process, name) -> (time, step, number), in order of time."""

    def update(self) -> None:
        """Read the records that were added."""
        for record in self._tail.read():
            self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        process, at, step = record.get("process", "?"), record.get("time", 0.0), record.get("step")
        for name, value in record.items():
            if name not in ("time", "process", "step") and isinstance(value, int | float):
                self.latest[process, name] = value
                curve = self.curves.setdefault((process, name), [])
                # A learner that went on from a checkpoint makes some steps again: the last counts.
                while step is not None and curve and (curve[-1][1] or -1) >= step:
                    curve.pop()
                curve.append((at, step, value))

    def number(self, process: str, name: str) -> float | None:
        """The last number of this name; None where none was logged."""
        return self.latest.get((process, name))

    def curve(self, process: str, name: str) -> list[tuple[float, int | None, float]]:
        """All numbers of this name; empty where none was logged."""
        return self.curves.get((process, name), [])


def smooth(values: Iterable[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average that starts at the first value."""
    out: list[float] = []
    for value in values:
        out.append(value if not out else weight * out[-1] + (1 - weight) * value)
    return out


def evaluations(run_dir: Path) -> dict[str, float]:
    """`before` / `after` -> adherence after an edit on held-out tasks, where it was measured."""
    found = {}
    for name in ("before", "after"):
        value = read_json(run_dir / "evaluation" / f"{name}.json").get("adherence_after_edit")
        if isinstance(value, int | float):
            found[name] = float(value)
    return found
