"""Arms and seeds in several processes: what comes back, what is left, and what ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks._jobs import Line, Todo, in_processes

PROGRAM = """
import os, sys
from benchmarks._jobs import answer

def begin(emit):
    def measure(arm, seed, deadline):
        print("what a library says")
        if arm == "dies":
            os._exit(3)
        emit({"arm": arm, "seed": seed, "pid": os.getpid(), "deadline": deadline == float("inf")})
    return measure

sys.exit(answer(begin))
"""


def command(folder: Path) -> list[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return [sys.executable, str(program)]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_every_unit_is_measured_once(tmp_path: Path) -> None:
    units = [(arm, seed) for arm in ("a", "b") for seed in range(3)]
    found: list[Line] = []
    in_processes(command(tmp_path), Todo(units), 3, found.append)
    assert sorted((one["arm"], one["seed"]) for one in found) == units
    assert len({one["pid"] for one in found}) <= 3
    assert all(one["deadline"] for one in found)


def test_a_process_that_ends_costs_what_it_was_at(tmp_path: Path) -> None:
    found: list[Line] = []
    todo = Todo([("dies", 0), *(("a", seed) for seed in range(4))], minutes=1)
    with pytest.raises(SystemExit, match=r"measured \('dies', 0\) ended"):
        in_processes(command(tmp_path), todo, 2, found.append)
    assert sorted(one["seed"] for one in found) == [0, 1, 2, 3]
    assert not any(one["deadline"] for one in found)


def test_nothing_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    todo = Todo([("a", 0), ("base", 0), ("a", 1), ("base", 1)], minutes=1, kind=lambda arm: arm)
    begun = []
    for arm, seed in todo:
        begun.append((arm, seed))
        now += {"a": 40.0, "base": 5.0}[arm]
    assert begun == [("a", 0), ("base", 0), ("base", 1)]
    assert todo.left == [("a", 1)]
