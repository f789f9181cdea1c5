"""Passes without an engine, on a case done by hand."""

from __future__ import annotations

import msgspec
import numpy as np

from dynatok_online.spans.audit import audit
from dynatok_online.spans.baselines import truncated_spans
from dynatok_online.spans.build import build_spans
from dynatok_online.tasks.scripted import computed_tokens, scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.trajectory import Reuse, Trajectory


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def task(*edits: tuple[int, str, str]) -> Task:
    return Task(
        "t",
        "12{{a}}3{{b}}4",
        {"a": SlotState("AA"), "b": SlotState("BB")},
        tuple(ScheduledEdit(at, slot, SlotState(text)) for at, slot, text in edits),
        max_tokens=10,
        widths={"a": 1, "b": 1},  # as wide as their longest state
    )


def made(reuse: str, block: int, *edits: tuple[int, str, str]) -> Trajectory:
    one = scripted_trajectory(task(*edits), encode("vwxyz"), encode, reuse=reuse, block_size=block)
    assert not audit(one)
    return one


def test_exact_reuses_whole_blocks_of_the_unchanged_prefix() -> None:
    one = made("exact", 2, (3, "b", "bb"))
    first, second = one.passes
    assert (first.start, first.stop, second.start, second.stop) == (0, 3, 3, 5)
    assert "".join(map(chr, one.fed(1))) == "12AA3bb4vwx"
    # "12AA3" is unchanged: two whole blocks of it.
    assert (first.reuse, second.reuse) == ((), (Reuse(0, 0, 4),))
    assert second.num_cached_tokens == 4
    assert computed_tokens(one) == (8 + 2) + (11 - 4) + 1


def test_sticky_computes_the_blocks_of_the_edited_slot_and_the_last_position() -> None:
    one = made("sticky", 1, (3, "a", "aa"))
    # 12aa3BB4vwx: positions 2 and 3 are the slot, 10 has no KV yet.
    assert one.passes[1].reuse == (Reuse(0, 0, 2), Reuse(0, 4, 10))
    one = made("sticky", 4, (3, "a", "aa"))
    assert one.passes[1].reuse == (Reuse(0, 4, 8),)


def test_sticky_remembers_which_pass_computed_what() -> None:
    one = made("sticky", 1, (2, "a", "aa"), (4, "b", "bb"))
    assert one.passes[2].reuse == (
        Reuse(0, 0, 2),
        Reuse(1, 2, 4),
        Reuse(0, 4, 5),
        Reuse(0, 7, 9),
        Reuse(1, 9, 11),
    )


def test_sticky_slots_are_as_wide_as_their_longest_state() -> None:
    one = made("sticky", 1, (3, "a", "aaa"))
    assert ["".join(map(chr, one.fed(k))) for k in (0, 1)] == ["12AA 3BB4", "12aaa3BB4vwx"]
    assert one.passes[1].reuse == (Reuse(0, 0, 2), Reuse(0, 5, 11))


def test_refresh_computes_the_last_and_the_first_tokens_anew() -> None:
    def reused(reuse: str) -> tuple[Reuse, ...]:
        return made(reuse, 1, (3, "a", "aa")).passes[1].reuse

    # 12aa3BB4vwx, of which the pass before held 10 positions.
    assert reused("refresh:0") == reused("sticky") == (Reuse(0, 0, 2), Reuse(0, 4, 10))
    assert reused("refresh:2") == (Reuse(0, 0, 2), Reuse(0, 4, 8))
    assert reused("refresh:0+1") == (Reuse(0, 0, 2), Reuse(0, 5, 10))
    assert reused("refresh:3+2") == (Reuse(0, 0, 2), Reuse(0, 6, 7))
    assert reused("refresh:6") == reused("refresh:99") == reused("exact") == (Reuse(0, 0, 2),)
    assert made("refresh:2", 4, (3, "a", "aa")).passes[1].reuse == (Reuse(0, 4, 8),)
    assert made("refresh:3", 4, (3, "a", "aa")).passes[1].reuse == ()


def test_a_range_draws_for_every_pass_what_is_computed_anew() -> None:
    edits = tuple((at, "a", "aa" if at % 2 else "AA") for at in range(1, 5))
    one = made("refresh:0-9", 1, *edits)
    assert one.policy == "sticky"
    assert len({part.reuse[-1].stop - part.start for part in one.passes[1:]}) > 1


def test_what_stands_behind_the_response_is_never_kept() -> None:
    late = msgspec.structs.replace(task((3, "a", "aa")), template="12{{a}}3{{b}}{{response}}4")
    one = scripted_trajectory(late, encode("vwxyz"), encode, reuse="sticky")
    assert not audit(one)
    # 12aa3BBvwx4: the 4 stood at position 7, where w stands now.
    assert one.passes[1].reuse == (Reuse(0, 0, 2), Reuse(0, 4, 7))


def test_edits_after_the_end_are_left_out() -> None:
    one = made("exact", 1, (3, "a", "aa"), (8, "a", "AA"))
    assert len(one.passes) == 2
    assert [edit.effective_at for edit in one.edits] == [3]
    assert np.isnan(one.logprobs).all()


def test_every_response_token_is_a_target_once_and_sticky_computes_least() -> None:
    edits = ((2, "a", "aa"), (4, "b", "bb"))
    counts = {}
    for reuse in ("exact", "sticky"):
        spans = build_spans([made(reuse, 1, *edits)])
        assert sorted(spans.response_index.tolist()) == [0, 1, 2, 3, 4]
        counts[reuse] = len(spans.input_ids)
    assert (
        counts["sticky"]
        < counts["exact"]
        < len(truncated_spans([made("exact", 1, *edits)]).input_ids)
    )


def test_turned_keeps_what_stands_behind_a_slot_of_another_width() -> None:
    one = made("turned", 1, (2, "a", "aaaaa"), (4, "b", "b"))
    assert "".join(map(chr, one.fed(1))) == "12aaaaa3BB4vw"
    # Of 12AA3BB4v the first two stay, and 3BB4v moves from 4 to 7; w has no KV yet.
    assert one.passes[1].moved_reuse() == [(Reuse(0, 0, 2), 0), (Reuse(0, 7, 12), 3)]
    assert "".join(map(chr, one.fed(2))) == "12aaaaa3b4vwxy"
    assert one.passes[2].moved_reuse() == [
        (Reuse(0, 0, 2), 0),
        (Reuse(1, 2, 7), 0),
        (Reuse(0, 7, 8), 3),
        (Reuse(0, 9, 11), 2),  # 4v: three on, one back
        (Reuse(1, 11, 13), -1),  # wx
    ]
    assert computed_tokens(one) == (8 + 1) + (5 + 2) + (1 + 1)


def test_turned_keeps_whole_blocks_of_where_text_stands_now() -> None:
    one = made("turned", 4, (3, "a", "aaaaa"))
    # 12aa aaa3 BB4v wx: the third block was at 5 to 9, across two blocks.
    assert one.passes[1].moved_reuse() == [(Reuse(0, 8, 12), 3)]


def test_turned_with_slots_of_one_width_is_sticky() -> None:
    edits = (2, "a", "aa"), (4, "b", "bb")
    for turned, sticky in zip(
        made("turned", 1, *edits).passes, made("sticky", 1, *edits).passes, strict=True
    ):
        assert turned == sticky


def test_turned_behind_the_response_is_never_kept() -> None:
    late = msgspec.structs.replace(task((2, "a", "aaa")), template="12{{a}}{{response}}3{{b}}")
    one = scripted_trajectory(late, encode("vwxyz"), encode, reuse="turned")
    assert not audit(one)
    assert one.passes[1].moved_reuse() == [(Reuse(0, 0, 2), 0)]
