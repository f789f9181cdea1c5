"""Where reused KV came from, and reports of the engine that cannot be true."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actor.sessions.generation import Generated, Scheduled
from actor.sessions.recorder import Recorder, fed_tokens
from actor.sessions.serving import Head, Served
from dynatok_online.spans.build import audit
from dynatok_online.trajectory import OUTSIDE, RESPONSE, Reuse, Trajectory

PIECES = [np.arange(10, 20, dtype=np.int32), np.array([1], np.int32), np.array([2], np.int32)]
LAYOUT_A, LAYOUT_B = (0, 1, RESPONSE), (0, 2, RESPONSE)


def add(
    recorder: Recorder,
    layout: tuple[int, ...],
    sampled: list[int],
    cached: int,
    *,
    salt: str = "s",
    version: int = 0,
    label: str | None = None,
    name: str = "",
    heads: tuple[Head, ...] = (),
) -> None:
    fed = fed_tokens(layout, PIECES, recorder.response)
    labels = ((str(version) if label is None else label, len(sampled)),)
    generated = Generated(sampled, [-1.0] * len(sampled), cached, "length", labels)
    if not sampled:
        recorder.empty_pass(Served(generated, version, salt, name))
        return
    recorder.add_pass(
        Served(generated, version, salt, name, heads),
        layout=layout,
        states={},
        fed=fed,
        finish_reason="edit",
    )


def reuse(recorder: Recorder) -> list[tuple[Reuse, ...]]:
    trajectory = recorder.trajectory("t", PIECES)
    assert isinstance(trajectory, Trajectory)
    assert not audit(trajectory)
    return [one.reuse for one in trajectory.passes]


def test_an_edit_keeps_the_blocks_before_the_slot() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51, 52], 0)
    add(recorder, LAYOUT_B, [53, 54], 8)
    assert reuse(recorder) == [(), (Reuse(0, 0, 8),)]


def test_reuse_is_named_by_the_pass_that_computed_it() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51], 0)
    add(recorder, LAYOUT_B, [52, 53, 54, 55, 56], 8)
    add(recorder, LAYOUT_B, [57], 16)  # restarted in the same state: 0 .. 8 is still pass 0's
    assert reuse(recorder)[2] == (Reuse(0, 0, 8), Reuse(1, 8, 16))


def test_a_toggle_finds_the_blocks_of_the_first_state_beyond_those_of_the_second() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51, 52, 53, 54, 55], 0)  # 11 fed, KV to 16
    add(recorder, LAYOUT_B, [56], 8)
    add(recorder, LAYOUT_A, [57], 16)
    assert reuse(recorder)[2] == (Reuse(0, 0, 16),)


def test_blocks_of_others_are_outside() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51], 8)
    add(recorder, LAYOUT_B, [52], 8)
    add(recorder, LAYOUT_B, [53], 12)  # 8 .. 12 was computed by pass 1
    assert reuse(recorder) == [
        (Reuse(OUTSIDE, 0, 8),),
        (Reuse(OUTSIDE, 0, 8),),
        (Reuse(OUTSIDE, 0, 8), Reuse(1, 8, 12)),
    ]


def test_the_last_sampled_token_has_no_kv_of_ours() -> None:
    """The engine may have computed it before it heard of the abort: blocks of nobody here."""
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50], 0)  # 11 fed and 1 sampled: 12 tokens, KV for 11
    add(recorder, LAYOUT_A, [51, 52], 8)
    recorder2 = Recorder(4)
    add(recorder2, LAYOUT_A, [50, 51], 0)  # KV for 12
    add(recorder2, LAYOUT_A, [52], 12)
    assert reuse(recorder)[1] == (Reuse(0, 0, 8),)
    assert reuse(recorder2)[1] == (Reuse(0, 0, 12),)
    recorder3 = Recorder(4)
    add(recorder3, LAYOUT_A, [50, 51, 52, 53, 54], 0)  # KV for 15 of 16
    add(recorder3, LAYOUT_A, [55], 12)
    add(recorder3, LAYOUT_A, [56], 16)  # 12 .. 16 was completed by pass 1
    assert reuse(recorder3)[2] == (Reuse(0, 0, 12), Reuse(1, 12, 16))


def test_eviction_is_recorded_as_it_happened() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51], 0)
    add(recorder, LAYOUT_A, [52], 0)
    add(recorder, LAYOUT_A, [53], 12)
    assert reuse(recorder) == [(), (), (Reuse(1, 0, 12),)]


def test_new_weights_share_nothing_with_old_ones() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51], 0)
    add(recorder, LAYOUT_A, [52], 8, salt="new", version=1)
    assert reuse(recorder)[1] == (Reuse(OUTSIDE, 0, 8),)


def test_counts() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50, 51, 52], 0)
    add(recorder, LAYOUT_B, [53, 54], 8)
    add(recorder, LAYOUT_B, [], 0)
    counts = recorder.counts
    assert (counts.passes, counts.empty_passes, counts.generated_tokens) == (2, 1, 5)
    assert counts.reused_tokens == 8
    assert counts.computed_tokens == (11 + 2) + (14 + 1 - 8)


@pytest.mark.parametrize(
    ("cached", "label", "word"),
    [(6, "0", "whole number of blocks"), (11, "0", "must have computed"), (-4, "0", "reused -4")],
)
def test_impossible_reports_are_counted(cached: int, label: str, word: str) -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50], cached, label=label)
    assert recorder.counts.audit_mismatches == 1
    assert word in recorder.problems[0]


def test_tokens_of_other_weights_than_served_are_a_problem() -> None:
    recorder = Recorder(4)
    add(recorder, LAYOUT_A, [50], 0, version=3, label="2")
    assert "started under weights 3" in recorder.problems[0]
    assert recorder.passes[0].weight_versions[0].version == 2


# The engine's cache events.


class Log:
    """A cache log that says what a test tells it."""

    def __init__(self, **said: tuple[Scheduled, ...]) -> None:
        self.said = said
        self.forgotten: list[str] = []
        self.lost_batches = 0

    async def blocks_of(self, name: str, full_blocks: int) -> tuple[Scheduled, ...] | None:
        return self.said.get(name)

    def forget(self, names: Sequence[str]) -> None:
        self.forgotten += names


def said(tokens: int, reused: str, computed: str, *kept: int) -> Scheduled:
    found, filled = (tuple(c.encode() for c in part) for part in (reused, computed))
    return Scheduled(tokens, kept, found, filled)


def two_passes(**more: Any) -> Recorder:
    """10 prompt tokens and a slot of one, blocks of 4: the edit keeps blocks 0 and 1."""
    recorder = Recorder(4, **more)
    add(recorder, LAYOUT_A, [50, 51, 52], 0, name="p0")
    add(recorder, LAYOUT_B, [53, 54], 8, name="p1")
    return recorder


def confirm(recorder: Recorder, **reports: tuple[Scheduled, ...]) -> list[str]:
    log = Log(**reports)
    asyncio.run(recorder.confirm(log))
    assert set(log.forgotten) >= {"p0", "p1"}
    assert recorder.counts.audit_mismatches == len(recorder.problems)
    return recorder.problems


def test_events_that_agree_change_nothing() -> None:
    recorder = two_passes()
    before = recorder.trajectory("t", PIECES)
    assert confirm(recorder, p0=(said(11, "", "abc"),), p1=(said(14, "ab", "d"),)) == []
    after = recorder.trajectory("t", PIECES)
    assert (after.passes, after.response.tolist()) == (before.passes, before.response.tolist())


@pytest.mark.parametrize(
    ("p1", "word"),
    [
        (said(14, "a", "bd"), "reused 8 tokens, its events 4"),
        (said(14, "ax", "d"), "holds other KV than recorded"),
        (said(14, "ab", ""), "not in the engine's cache events"),
    ],
)
def test_events_that_contradict_the_count_or_the_origin(p1: Scheduled, word: str) -> None:
    (problem,) = confirm(two_passes(), p0=(said(11, "", "abc"),), p1=(p1,))
    assert word in problem


@pytest.mark.parametrize(("unreported", "wrong"), [(1, True), (2, False), (9, False)])
def test_what_the_last_step_filled_may_be_missing_in_the_events(
    unreported: int, wrong: bool
) -> None:
    """Block 2 of pass 0 was full with its last position but one."""
    recorder = two_passes(unreported=unreported)
    problems = confirm(recorder, p0=(said(11, "", "ab"),), p1=(said(14, "ab", "d"),))
    assert ["pass 0: block 2 is not in the engine's" in one for one in problems] == [True] * wrong


@pytest.mark.parametrize(("p0", "wrong"), [("ab", False), ("abc", True)])
def test_what_is_missing_in_the_events_may_be_found_as_another_sessions(
    p0: str, wrong: bool
) -> None:
    """Pass 2 is in the state of pass 0 again, whose block 2 somebody else filled with the same."""
    recorder = two_passes(unreported=2)
    add(recorder, LAYOUT_A, [55], 12, name="p2")
    said_of = {"p0": said(11, "", p0), "p1": said(14, "ab", "d"), "p2": said(16, "abz", "e")}
    problems = confirm(recorder, **{name: (one,) for name, one in said_of.items()})
    assert ["pass 2: block 2 holds other KV" in one for one in problems] == [True] * wrong


def test_what_was_fed_is_never_missing_in_the_events() -> None:
    recorder = two_passes(unreported=9)
    (problem,) = confirm(recorder, p0=(said(11, "", "abc"),), p1=(said(14, "ab", ""),))
    assert "pass 1: block 2 is not in the engine's cache events" in problem


def test_a_block_of_nobody_is_not_a_pass_of_ours() -> None:
    problems = confirm(two_passes(), p0=(said(11, "a", "bc"),), p1=(said(14, "ab", "d"),))
    assert ["its events 4" in problems[0], "did not compute it" in problems[1]] == [True, True]


def test_events_that_never_come_are_a_problem() -> None:
    (problem,) = confirm(two_passes(), p0=(said(11, "", "abc"),))
    assert "p1 did not come" in problem


def test_a_sticky_pass_that_was_preempted_and_lost_blocks_is_two_passes() -> None:
    recorder = Recorder(4, "sticky", "s")
    add(recorder, LAYOUT_A, [50, 51, 52, 53, 54, 55, 56], 0, name="p0")  # KV for 17
    # Under the other state block 2 (with the slot) is computed, block 3 kept, then 5 tokens.
    keep = recorder.keep(fed_tokens(LAYOUT_B, PIECES, recorder.response), "s")
    assert keep is not None
    assert (keep.previous, keep.held, keep.heads) == ("p0", 16, (13,))
    head = Head("p1.0", 13, 8)
    add(recorder, LAYOUT_B, [60, 61, 62, 63, 64], 16, name="p1", heads=(head,))
    assert recorder.passes[1].reuse == (Reuse(0, 0, 8), Reuse(0, 12, 16))
    problems = confirm(
        recorder,
        p0=(said(11, "", "abcd"),),
        **{"p1.0": (said(13, "ab", "x"),)},
        # Preempted after 2 of its 5 tokens; block 3 was evicted and is computed on block x.
        p1=(said(18, "abxd", "e", 3), said(20, "abx", "yz")),
    )
    assert problems == []
    trajectory = recorder.trajectory("t", PIECES)
    assert not audit(trajectory)
    _, second, third = trajectory.passes
    assert (second.start, second.stop, second.finish_reason) == (7, 9, "preempted")
    assert (third.start, third.stop, third.finish_reason) == (9, 12, "edit")
    assert third.reuse == (Reuse(0, 0, 8), Reuse(1, 8, 12))
    assert recorder.counts.preemptions == 1


def test_what_is_kept_ends_where_refresh_begins() -> None:
    """Held: 17 positions; the slot is position 10, so blocks 0, 1 and 3 are as before."""

    def kept(reuse: str) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        recorder = Recorder(4, reuse, "s")
        add(recorder, LAYOUT_A, [50, 51, 52, 53, 54, 55, 56], 0, name="p0")
        keep = recorder.keep(fed_tokens(LAYOUT_B, PIECES, recorder.response), "s")
        assert keep is not None
        return keep.held, keep.anew, keep.heads

    assert kept("refresh:0") == kept("sticky") == (16, (), (13,))
    assert kept("refresh:1") == (16, (), (13,)), "position 16 is in no whole block"
    assert kept("refresh:2") == (8, (), ()), "block 3 holds position 15"
    assert kept("refresh:10") == (4, (), ()), "what stands before the slot is found by its name"
    assert kept("refresh:99") == (0, (), ())
    assert kept("refresh:0+1") == (16, (), (13,)), "position 11 is in the slot's own block"
    assert kept("refresh:0+2") == (8, (), ())


def test_blocks_behind_the_slot_are_computed_anew_by_the_request_ahead() -> None:
    recorder = Recorder(4, "refresh:0+2", "s")
    add(recorder, LAYOUT_A, [50 + i for i in range(11)], 0, name="p0")  # KV for 21
    keep = recorder.keep(fed_tokens(LAYOUT_B, PIECES, recorder.response), "s")
    assert keep is not None
    assert (keep.held, keep.anew, keep.heads) == (20, (3,), (17,))
    recorder.add_pass(
        Served(Generated([60], [-1.0], 20, "length", (("0", 1),)), 0, "s", "p1",
               (Head("p1.0", 17, 8),)),
        layout=LAYOUT_B,
        states={},
        fed=fed_tokens(LAYOUT_B, PIECES, recorder.response),
        finish_reason="edit",
        keep=keep,
    )  # fmt: skip
    assert reuse(recorder)[1] == (Reuse(0, 0, 8), Reuse(0, 16, 20))


def test_a_pass_without_an_edit_keeps_everything_whatever_the_policy() -> None:
    recorder = Recorder(4, "refresh:99+99", "s")
    add(recorder, LAYOUT_A, [50, 51, 52, 53, 54, 55, 56], 0, name="p0")
    keep = recorder.keep(fed_tokens(LAYOUT_A, PIECES, recorder.response), "s")
    assert keep is not None
    assert (keep.held, keep.anew, keep.heads) == (16, (), ())


def test_preemption_that_lost_nothing_cuts_nothing() -> None:
    recorder = two_passes(reuse="sticky", session="s")
    reports = {"p0": (said(11, "", "abc"),), "p1": (said(14, "ab", "d"), said(15, "ab", "d"))}
    assert confirm(recorder, **reports) == []
    assert len(recorder.passes) == 2
    assert recorder.counts.preemptions == 1
