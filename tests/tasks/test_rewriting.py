"""Gold from plain texts: cut, rewritten, checked; edits fall exactly on the borders of segments."""

from __future__ import annotations

import random
from functools import partial
from itertools import accumulate
from typing import Any

import pytest

from dynatok_online.prompt import Encoder
from dynatok_online.requirements import requirement
from dynatok_online.tasks import writing
from dynatok_online.tasks.files import Segment, read_row
from dynatok_online.tasks.gold import gold
from dynatok_online.tasks.rewriting import rewritten, tidy

TEXT = (
    "The sea is wide, and it is blue. We saw twelve boats in the harbor, but the wind was strong. "
    "People like the long days, and they sing in the evening. Birds sing in the trees. The cat "
    "watches them under the table, near the warm stove. They all sleep in the old red house."
)
STOP = 0


def encode(text: str) -> list[int]:
    return [ord(sign) for sign in text]


def made(slots: tuple[str, ...], seed: int, edits: int, text: str = TEXT) -> list[Segment] | None:
    rng = random.Random(seed)
    states = writing.drawn_states(rng, slots)
    return rewritten(text, states, partial(writing.drawn_change, rng), rng, edits=edits)


@pytest.mark.parametrize("slots", sorted(set(writing.SLOTS)))
def test_every_segment_satisfies_the_states_it_was_written_under(slots: tuple[str, ...]) -> None:
    for seed in range(30):
        segments = made(slots, seed, 2)
        assert segments is not None
        assert len(segments) == 3
        texts = [one.text for one in segments]
        live: dict[str, Any] = {}
        for i, one in enumerate(segments):
            assert set(one.states) <= set(slots)
            live |= one.states
            assert i == 0 or one.text.startswith(" ")  # the blank belongs to the word behind it
            for state in live.values():
                verdict = requirement(str(state.requirement)).verify(
                    one.text, before="".join(texts[:i]), after="".join(texts[i + 1 :])
                )
                assert verdict.holds is not False


def test_a_row_of_them_is_gold_with_edits_on_their_borders() -> None:
    segments = made(("case", "form"), 3, 2)
    assert segments is not None
    row = read_row(writing.gold_row("g", "the sea", ("case", "form"), segments))
    encoder = Encoder(encode, stop=STOP)

    def chat(messages: list[dict[str, str]]) -> str:
        return messages[0]["content"] + "\n"

    task, tokens, stopped = gold(row, encoder, chat=chat)
    assert stopped
    assert tokens == [*encode("".join(one.text for one in segments)), STOP]
    borders = list(accumulate(len(one.text) for one in segments))[:-1]
    assert [edit.index for edit in task.edits] == borders
    for edit, segment in zip(task.edits, segments[1:], strict=True):
        assert segment.states == {edit.slot: edit.state}


def test_half_of_the_edits_fall_on_the_ends_of_sentences() -> None:
    ends = 0
    for seed in range(200):
        segments = made(("case",), seed, 1)
        assert segments is not None
        ends += segments[0].text.endswith(".")
    assert 90 <= ends <= 140


def test_a_text_without_room_for_its_edits_gives_none() -> None:
    assert made(("case",), 0, 1, "The sea is wide.") is None


def test_tidy_keeps_whole_sentences_of_the_first_words() -> None:
    assert tidy("**One** two.\n\nThree four five. Six", 20) == "One two. Three four five."
    assert tidy("One two. Three four five.", 4) == "One two."
    assert tidy("no end", 20) == ""
