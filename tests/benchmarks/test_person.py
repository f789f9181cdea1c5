"""A person beside collecting sessions: what is said of the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks._person import Person, said, write_person


def person() -> Person:
    return Person(
        sessions=32,
        mode="sticky",
        states=8,
        blocks=432,
        needed=864,
        unloaded=[10.0, 10.0, 20.0],
        loaded=[20.0, 20.0, 20.0, 20.0],
        alone=[9.0, 9.0, 10.0],
        together=[10.0, 9.0, 20.0],
        others_preempted=5,
    )


def test_ratios_by_hand() -> None:
    one = person()
    assert one.collection == pytest.approx(0.9)  # of 0.9, 1.0 and 0.5
    assert one.p95_ratio == pytest.approx(20 / 19)


def test_the_section(tmp_path: Path) -> None:
    page = tmp_path / "actor.md"
    page.write_text("# The actor\n\n## Other\n\nWords.\n")
    for _ in range(2):
        write_person(page, [person()], "2026-01-02")
    text = page.read_text()
    assert text.count("## A person among collecting sessions") == 1
    assert "| beside collecting | 4 | 20.0 | 20.0 |" in text
    assert "ran at 0.900 of its speed alone (median of 3 rounds, 0.500 to 1.000)" in text
    assert all(line in text for line in said(person()))
