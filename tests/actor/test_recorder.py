"""Where reused KV came from, and reports of the engine that cannot be true."""

from __future__ import annotations

import numpy as np
import pytest

from actor.generation import Generated
from actor.recorder import Recorder
from actor.serving import Served
from dynatok_online.spans import audit
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
) -> None:
    fed: list[int] = []
    for i in layout:
        fed += recorder.response if i == RESPONSE else PIECES[i].tolist()
    labels = ((str(version) if label is None else label, len(sampled)),)
    generated = Generated(sampled, [-1.0] * len(sampled), cached, "length", labels)
    recorder.add_pass(
        Served(generated, version, salt), layout=layout, states={}, fed=fed, finish_reason="edit"
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
