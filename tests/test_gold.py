"""Gold from plain texts: cut, rewritten, checked; edits fall exactly on the borders of segments."""

from __future__ import annotations

import random
from functools import partial

import pytest

from dynatok_online import writing
from dynatok_online.gold import make_gold, tidy
from dynatok_online.requirements import requirement
from dynatok_online.tasks import Task

TEXT = (
    "The sea is wide, and it is blue. We saw twelve boats in the harbor, but the wind was strong. "
    "People like the long days, and they sing in the evening. Birds sing in the trees. The cat "
    "watches them under the table, near the warm stove. They all sleep in the old red house."
)
STOP = 0


def encode(text: str) -> list[int]:
    return [ord(sign) for sign in text]


def task(*slots: str, rng: random.Random) -> Task:
    template = "Write.\n" + "\n".join(writing.LINES[slot] for slot in slots) + "\n"
    return Task("t", template, writing.drawn_states(rng, slots))


@pytest.mark.parametrize("slots", sorted(set(writing.SLOTS)))
def test_every_segment_satisfies_the_states_it_was_written_under(slots: tuple[str, ...]) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        change = partial(writing.drawn_change, rng)
        gold = make_gold(TEXT, task(*slots, rng=rng), change, rng, encode, stop=STOP, edits=2)
        assert gold is not None
        assert gold.tokens[-1] == STOP
        assert gold.tokens.count(STOP) == 1
        text = "".join(map(chr, gold.tokens[:-1]))
        starts = [0, *(edit.index for edit in gold.task.edits)]
        assert len(starts) == 3
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            assert start == 0 or text[start] == " "  # the blank belongs to the word behind it
            for state in gold.task.states_at(start).values():
                verdict = requirement(str(state.requirement)).verify(
                    text[start:stop], before=text[:start], after=text[stop:]
                )
                assert verdict.holds is not False


def test_half_of_the_edits_fall_on_the_ends_of_sentences() -> None:
    ends = 0
    for seed in range(200):
        rng = random.Random(seed)
        change = partial(writing.drawn_change, rng)
        gold = make_gold(TEXT, task("case", rng=rng), change, rng, encode, stop=STOP, edits=1)
        assert gold is not None
        at = gold.task.edits[0].index
        ends += gold.tokens[at - 1] == ord(".")
    assert 90 <= ends <= 140


def test_a_text_without_room_for_its_edits_gives_none() -> None:
    rng = random.Random(0)
    change = partial(writing.drawn_change, rng)
    short = "The sea is wide."
    assert make_gold(short, task("case", rng=rng), change, rng, encode, stop=0, edits=1) is None


def test_tidy_keeps_whole_sentences_of_the_first_words() -> None:
    assert tidy("**One** two.\n\nThree four five. Six", 20) == "One two. Three four five."
    assert tidy("One two. Three four five.", 4) == "One two."
    assert tidy("no end", 20) == ""
