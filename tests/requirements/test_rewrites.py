"""Rewritten texts satisfy the verifier of the requirement that they were rewritten for."""

from __future__ import annotations

import pytest

from dynatok_online.requirements import KINDS, requirement
from dynatok_online.requirements.rewrites import REWRITES, can_rewrite, rewrite

TEXTS = (
    "The sea is wide, and it's blue. Dr. Smith saw 12 boats in the harbor, but the wind was strong "
    'because winter came early! "Why?" he asked.',
    " the night train is a well-known way to travel, and it costs $1,000. People don’t mind the "
    "noise... They sleep.",
    "In spring, birds sing in the trees (the old ones). The cat watches them; the dog sleeps under "
    "the table near the warm stove in the kitchen.",
    "It was quiet",
)
NAMES = (
    "upper",
    "lower",
    "title",
    "exclaim",
    "ask",
    "no_comma",
    "brackets",
    "forbid:the,a",
    "no_letter:a",
    "no_e",
    "no_digits",
    "short_sentences:6",
    "max_words:10",
    "max_sentences:2",
    "quoted",
    "starts_with:We saw",
    "ends_with:The end.",
    "upper+brackets",
    "title+forbid:the",
    "exclaim+lower+no_comma",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_rewritten_text_satisfies_its_own_verifier(name: str) -> None:
    for text in TEXTS:
        assert requirement(name).verify(rewrite(name, text)).holds is not False


def test_every_rewrite_is_of_a_kind_and_tried_above() -> None:
    tried = {part.partition(":")[0] for name in NAMES for part in name.split("+")}
    assert REWRITES.keys() <= KINDS.keys()
    assert REWRITES.keys() == tried


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("title", " it's a SMALL boat.", " It's A Small Boat."),
        ("exclaim", "We sail. Do we? At 3.5 knots...", "We sail! Do we! At 3.5 knots!"),
        ("ask", "Dr. Lee (3.5 knots) left. Mr. B", "Dr. Lee (3.5 knots) left? Mr. B"),
        ("exclaim", '"Go." said Mrs. Lee.', '"Go!" said Mrs. Lee!'),
        ("brackets", "[Go] home, now.", "[Go] [home], [now]."),
        ("forbid:the", "The sea, the boat.", "Sea, boat."),
        ("forbid:boat", "We saw a boat. It left.", "We saw a. It left."),
        (
            "short_sentences:5",
            "We saw boats, and the wind was cold today.",
            "We saw boats. And the wind was cold. Today.",
        ),
    ],
)
def test_by_hand(name: str, text: str, wanted: str) -> None:
    assert rewrite(name, text) == wanted


def test_what_no_program_rewrites_for_is_said() -> None:
    assert can_rewrite("upper+no_comma")
    assert not can_rewrite("upper+rhyme")
    with pytest.raises(ValueError, match="no program rewrites a text for 'rhyme'"):
        rewrite("rhyme", "The sea.")
    with pytest.raises(ValueError, match="did you mean 'upper'"):
        rewrite("uper", "The sea.")
