"""The edit decides what counts as after an edit, whatever cut its text into passes."""

from __future__ import annotations

import numpy as np
import pytest

from dynatok_online.adherence.stretches import Scored, edited_scores, scores, stretches
from dynatok_online.adherence.summary import said, summarize
from dynatok_online.trajectory import RESPONSE, Edit, Pass, Trajectory


def one(start: int, stop: int, finish: str = "edit", **found: float) -> Pass:
    return Pass(
        layout=(0, RESPONSE),
        states={},
        start=start,
        stop=stop,
        num_cached_tokens=0,
        scores=found,
        finish_reason=finish,
    )


def trajectory(*passes: Pass, edits: tuple[tuple[str, int], ...]) -> Trajectory:
    length = passes[-1].stop
    return Trajectory(
        trajectory_id="t",
        pieces=(np.zeros(1, np.int32),),
        response=np.zeros(length, np.int32),
        logprobs=np.zeros(length, np.float32),
        passes=passes,
        edits=tuple(Edit(slot, "x", at, at, "human") for slot, at in edits),
    )


CUT = trajectory(
    one(0, 10, a=1.0, b=0.5),
    one(10, 12, "weights", a=0.0),
    one(12, 100, "preempted", a=1.0, b=1.0),
    one(100, 110, a=0.5),
    one(110, 120, "length", b=0.0),
    edits=(("a", 10), ("b", 110)),
)


def test_two_tokens_do_not_outvote_the_rest_of_the_text_after_an_edit() -> None:
    (after_a, after_b) = edited_scores([CUT])
    assert after_a == pytest.approx((2 * 0.0 + 88 * 1.0 + 10 * 0.5) / 100)
    assert after_b == 0.0
    summary = summarize([CUT])
    assert summary["adherence_after_edit"] == pytest.approx(0.93 / 2)
    assert (summary["edits_judged"], summary["passes_after_edit"]) == (2, 4)


def test_stretches_go_from_edit_to_edit() -> None:
    first, second, third = stretches(CUT)
    assert [(s.start, s.stop, len(s.passes)) for s in (first, second, third)] == [
        (0, 10, 1),
        (10, 110, 3),
        (110, 120, 1),
    ]
    assert (first.edited, first.static) == (frozenset(), True)
    assert (second.edited, second.static) == (frozenset("a"), False)
    assert scores(CUT)[:2] == [Scored("a", 1.0, 1, False, True), Scored("b", 0.5, 1, False, True)]


def test_the_static_text_is_one_stretch_too() -> None:
    cut = trajectory(one(0, 5, "weights", a=1.0), one(5, 25, a=0.0), edits=())
    assert scores(cut) == [Scored("a", 0.2, 2, False, True)]
    summary = summarize([cut])
    assert (summary["adherence_static"], summary["passes_static"]) == (0.2, 2)
    assert summary["adherence_after_edit"] is None


def test_an_edit_before_the_first_token_leaves_nothing_static() -> None:
    (only,) = stretches(trajectory(one(0, 5, a=1.0), edits=(("a", 0),)))
    assert (only.edited, only.static) == (frozenset("a"), False)


def test_a_share_has_its_interval() -> None:
    summary = summarize([CUT, CUT, CUT])
    values = [0.93, 0.0] * 3
    assert summary["edits_judged"] == 6
    half = 2.571 * float(np.std(values, ddof=1)) / 6**0.5
    assert summary["adherence_after_edit_half"] == pytest.approx(half, rel=1e-3)
    assert (
        summarize([trajectory(one(0, 5, a=1.0), edits=(("a", 0),))])["adherence_after_edit_half"]
        is None
    )
    assert [said(0.5, 0.25), said(0.5, None), said(None, None)] == [
        "0.500 ± 0.250",
        "0.500",
        "unknown",
    ]
