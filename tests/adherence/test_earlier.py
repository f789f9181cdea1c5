"""What text is worth under states that came after it, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynatok_online.adherence.earlier import judge_earlier
from dynatok_online.adherence.passes import PassTexts
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Earlier

UPPER, LOWER = SlotState("in capitals", "upper"), SlotState("in small letters", "lower")
SHORT, FREE = SlotState("short", "short_sentences:2"), SlotState("about cats")


def decode(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def judge(
    *written: tuple[str, Mapping[str, SlotState]], thinking: bool = False
) -> list[list[tuple[str, float]]]:
    """Per pass, the earlier text that is judged, and its worth."""
    bounds, at = [], 0
    for text, _ in written:
        bounds.append((at, at := at + len(text)))
    text = "".join(text for text, _ in written)
    states = [state for _, state in written]
    texts = PassTexts([ord(c) for c in text], bounds, decode, thinking=thinking)
    found = judge_earlier(texts, states)
    assert all(isinstance(piece, Earlier) for one in found for piece in one)
    return [[(text[p.start : p.stop], p.score) for p in one] for one in found]


def test_sentences_that_obey_a_later_state() -> None:
    found = judge(("THE SEA. the hill. A Hut.", {"s": UPPER}), (" and so.", {"s": LOWER}))
    assert found == [[], [("THE SEA.", 0.0), (" the hill.", 1.0), (" A Hut.", 0.0)]]


def test_the_slot_that_is_satisfied_least_decides() -> None:
    first = {"case": UPPER, "length": FREE}
    found = judge(("a b. c d e. F g.", first), (" x", {"case": LOWER, "length": SHORT}))
    assert found[1] == [("a b.", 1.0), (" c d e.", 0.0), (" F g.", 0.5)]


def test_an_edited_slot_that_says_nothing_gives_no_verdict() -> None:
    text = ("1 2. the sea.", {"s": UPPER})
    assert judge(text, ("x", {"s": LOWER}))[1] == [(" the sea.", 1.0)]
    assert judge(text, ("x", {"s": FREE}))[1] == []


def test_what_is_missing_is_missing_in_every_sentence() -> None:
    long = SlotState("long", "min_words:5")
    (_, found) = judge(("a b. c.", {"s": FREE}), ("x", {"s": long}))
    assert found == [("a b.", 2 / 4), (" c.", 1 / 3)]


def test_a_word_of_two_passes_is_in_neither() -> None:
    found = judge(("the HI", {"s": UPPER}), ("LL", {"s": LOWER}))
    assert found[1] == [("the HI", 1.0)]


def test_each_text_is_judged_once_by_a_state() -> None:
    one, other = {"s": UPPER}, {"s": LOWER}
    texts = [("A. ", one), ("B. ", other), ("c. ", one), ("d. ", one), ("e. ", other), ("F.", one)]
    found = judge(*texts)
    assert found[1] == [("A.", 0.0)]
    assert found[2] == [("B.", 1.0)]
    assert found[3] == []
    assert found[4] == [("c.", 1.0), ("d.", 1.0)]
    assert found[5] == [("e.", 0.0)]


def test_thoughts_are_judged_by_nobody() -> None:
    found = judge(("the end. </think> the sea.", {"s": UPPER}), ("x", {"s": LOWER}), thinking=True)
    assert found[1] == [("the sea.", 1.0)]


def test_nothing_was_edited() -> None:
    assert judge(("the sea. ", {"s": LOWER}), ("the hill.", {"s": LOWER})) == [[], []]
