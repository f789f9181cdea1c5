"""Coverage by hand, and the ending of a response."""

from __future__ import annotations

import pytest

from dynatok_online.adherence.coverage import Ending, coverage, ending
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import decode, encode


def test_by_hand() -> None:
    group = [Ending("a", True), Ending("a", True), Ending("b", True), Ending("c", False)]
    found = coverage([group, [None, Ending("d", True)], []])
    assert found["valid"]["mean"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["unique"]["mean"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["distinct_valid"]["mean"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["valid"]["count"] == 2
    assert found["distinct_valid"]["half"] == pytest.approx(0)
    assert coverage([]) == {
        name: {"mean": None, "half": None, "count": 0}
        for name in ("valid", "unique", "distinct_valid")
    }


def test_gold_endings_are_valid_and_spoilt_ones_are_not() -> None:
    task = next(one for one in world.tasks("heldout", seed=3) if one.edits)
    text = world.gold_response(task)
    right = ending(task, scripted_trajectory(task, encode(text), encode), decode)
    assert right is not None
    assert right.valid
    last = task.edits[-1].index
    assert right.text == " ".join(text[last:].split())
    spoilt = text[:last] + "".join(c.swapcase() for c in text[last:])
    wrong = ending(task, scripted_trajectory(task, encode(spoilt), encode), decode)
    assert wrong is not None
    assert not wrong.valid


def test_only_the_text_since_the_last_edit_counts() -> None:
    task = next(one for one in world.tasks("heldout", seed=4) if len(one.edits) > 1)
    text = world.gold_response(task)
    first = task.edits[0].index
    spoilt = text[: first - 1].swapcase() + text[first - 1 :]
    one = ending(task, scripted_trajectory(task, encode(spoilt), encode), decode)
    assert one is not None
    assert one.valid
