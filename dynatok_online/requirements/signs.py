"""Letters, digits and punctuation marks."""

from __future__ import annotations

import re
from collections.abc import Callable

from dynatok_online.requirements.core import (
    CHUNK,
    SENTENCE,
    UNBOUNDED,
    WORD,
    Requirement,
    at_least,
    at_most,
    each,
    matches,
)
from dynatok_online.requirements.wordlists import NUMBER_WORDS

_BRACKETABLE = re.compile(r"\[?[^\W_]+(?:'[^\W_]+)*\]?")


def _is_digits(word: str) -> bool | None:
    if word.isdecimal():
        return True
    return False if word.lower() in NUMBER_WORDS else None


def _is_spelled(word: str) -> bool | None:
    ok = _is_digits(word)
    return None if ok is None else not ok


def _ends_with(marks: str) -> Callable[[str], bool | None]:
    def judge(sentence: str) -> bool | None:
        bare = sentence.rstrip("\"')]")
        return bare[-1] in marks if bare[-1:] in (".", "!", "?") else None

    return judge


DIGITS = Requirement(
    "digits", "numbers", "as digits", each(WORD, _is_digits), {"digits": (1, UNBOUNDED)}
)
SPELLED = Requirement("spelled", "numbers", "in words", each(WORD, _is_spelled))
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
    each(CHUNK, lambda chunk: "," not in chunk),
    {"commas": (0, 0)},
)
BRACKETS = Requirement(
    "brackets",
    "marks",
    "[brackets]",
    each(_BRACKETABLE, lambda piece: piece.startswith("[") and piece.endswith("]")),
)
EXCLAIM = Requirement("exclaim", "ending", "end with !", each(SENTENCE, _ends_with("!")))
ASK = Requirement("ask", "ending", "only questions", each(SENTENCE, _ends_with("?")))


def no_letter(name: str, letter: str) -> Requirement:
    """A text without this letter, judged word by word."""
    return Requirement(
        name,
        "letters",
        f"no letter {letter}",
        each(WORD, lambda word: letter not in word.lower()),
        {f"letter {letter}": (0, 0)},
    )


def min_letter(name: str, letter: str, count: int) -> Requirement:
    """The letter stands at least so often."""
    return Requirement(
        name,
        "letters",
        f"letter {letter} at least {count} times",
        at_least(matches(re.compile(re.escape(letter), re.IGNORECASE)), count),
        {f"letter {letter}": (count, UNBOUNDED)},
    )


def max_letter(name: str, letter: str, count: int) -> Requirement:
    """The letter stands at most so often."""
    return Requirement(
        name,
        "letters",
        f"letter {letter} at most {count} times",
        at_most(matches(re.compile(re.escape(letter), re.IGNORECASE)), count, matches(WORD)),
        {f"letter {letter}": (0, count)},
    )


def min_placeholders(name: str, count: int) -> Requirement:
    """At least so many placeholders such as [address]."""
    return Requirement(
        name,
        "marks",
        f"at least {count} [placeholders]",
        at_least(matches(re.compile(r"\[.*?\]")), count),
    )
