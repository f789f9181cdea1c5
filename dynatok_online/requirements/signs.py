"""Letters, digits and punctuation marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dynatok_online.requirements.folding import letter as letter_pattern
from dynatok_online.requirements.numbers import locate_digits, locate_spelled
from dynatok_online.requirements.pieces import LETTER_RUN, LINE, pattern
from dynatok_online.requirements.verdict import (
    CHUNK,
    SENTENCE,
    UNBOUNDED,
    WORD,
    Requirement,
    Text,
    at_least,
    at_most,
    each,
    matches,
)

_BRACKETABLE = pattern(rf"\[?{LETTER_RUN}\]?")
_COMMAS = frozenset(",，、،﹐﹑､")
# The marks at the end, before what closes a quotation; か before them makes a question.
_ENDING = pattern(r"(か?[.!?…‽؟।。！？｡]+)[\s\"'”’“‘»«›‹)\]*_」』）】》〉]*$")


def _ends_with(marks: str) -> Callable[[str], bool | None]:
    def judge(sentence: str) -> bool | None:
        ending = _ENDING.search(sentence)
        return None if ending is None else any(mark in marks for mark in ending[1])

    return judge


DIGITS = Requirement("digits", "numbers", "as digits", locate_digits, {"digits": (1, UNBOUNDED)})
SPELLED = Requirement("spelled", "numbers", "in words", locate_spelled)
NO_DIGITS = Requirement(
    "no_digits",
    "digits",
    "no digits",
    each(CHUNK, lambda chunk: not any(c.isdigit() for c in chunk)),
    {"digits": (0, 0)},
)
NO_COMMA = Requirement(
    "no_comma",
    "marks",
    "no commas",
    each(CHUNK, lambda chunk: _COMMAS.isdisjoint(chunk)),
    {"commas": (0, 0)},
)
BRACKETS = Requirement(
    "brackets",
    "marks",
    "[brackets]",
    each(_BRACKETABLE, lambda piece: piece.startswith("[") and piece.endswith("]")),
)
EXCLAIM = Requirement("exclaim", "ending", "end with !", each(SENTENCE, _ends_with("!！‽")))
ASK = Requirement("ask", "ending", "only questions", each(SENTENCE, _ends_with("?？؟‽か")))


def no_letter(name: str, letter: str) -> Requirement:
    """A text without this letter, judged word by word."""
    stands = letter_pattern(letter).search
    return Requirement(
        name,
        "letters",
        f"no letter {letter}",
        each(WORD, lambda word: not stands(word)),
        {f"letter {letter}": (0, 0)},
    )


def min_letter(name: str, letter: str, count: int) -> Requirement:
    """The letter stands at least so often."""
    return Requirement(
        name,
        "letters",
        f"letter {letter} at least {count} times",
        at_least(matches(letter_pattern(letter)), count),
        {f"letter {letter}": (count, UNBOUNDED)},
    )


def max_letter(name: str, letter: str, count: int) -> Requirement:
    """The letter stands at most so often."""
    return Requirement(
        name,
        "letters",
        f"letter {letter} at most {count} times",
        at_most(matches(letter_pattern(letter)), count, matches(WORD)),
        {f"letter {letter}": (0, count)},
    )


def _placeholders(text: Text) -> Iterator[tuple[int, int]]:
    for line in LINE.finditer(text.whole):
        for opening, closing in ("[]", "［］"):
            start = line.group().find(opening)
            while start >= 0 and (stop := line.group().find(closing, start)) >= 0:
                place = line.start() + start, line.start() + stop + 1
                if text.holds(*place):
                    yield place
                start = line.group().find(opening, stop)


def min_placeholders(name: str, count: int) -> Requirement:
    """At least so many placeholders such as [address]."""
    return Requirement(
        name,
        "marks",
        f"at least {count} [placeholders]",
        at_least(_placeholders, count),
    )
