"""What a run's `metrics.jsonl` says so far: the latest numbers, and the curves.

Shared by the panel, which reads it while it grows, and by the picture, drawn at the end. The
processes choose the names; the ones that people look at are listed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

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


class HeldOut(NamedTuple):
    """Adherence after an edit on held-out tasks."""

    mean: float
    half: float | None
    """Half the width of its 95 % interval."""
    edits: int | None

    def __str__(self) -> str:
        sure = "" if self.half is None else f" ± {self.half:.2f}"
        return f"{self.mean:.2f}{sure}" + ("" if self.edits is None else f" ({self.edits} edits)")


def evaluations(run_dir: Path) -> dict[str, HeldOut]:
    """`before` / `after` -> what was measured, where it was."""
    found = {}
    for name in ("before", "after"):
        try:
            one = read_json(run_dir / "evaluation" / f"{name}.json")
        except OSError:  # a picture is drawn of what can be read
            continue
        value = one.get("adherence_after_edit")
        if isinstance(value, int | float):
            half, edits = one.get("adherence_after_edit_half"), one.get("edits_judged")
            found[name] = HeldOut(float(value), half, edits)
    return found
