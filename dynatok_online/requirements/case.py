"""Upper, lower and title case, and how many words may stand in capitals."""

from __future__ import annotations

import re

from dynatok_online.requirements.core import (
    UNBOUNDED,
    WORD,
    Requirement,
    at_least,
    at_most,
    each,
    matches,
)

# As nltk's tokens: I'M is two words, WELL-KNOWN and P.P.S one each.
_TOKEN = re.compile(r"[^\W_]+(?:[-.][^\W_]+)*")


def _upper(word: str) -> bool | None:
    return word.isupper() if any(c.isalpha() for c in word) else None


def _lower(word: str) -> bool | None:
    return word.islower() if any(c.isalpha() for c in word) else None


def _title(word: str) -> bool | None:
    if not word[0].isalpha():
        return None
    rest = word[1:]
    return word[0].isupper() and (rest.islower() or not any(c.isalpha() for c in rest))


UPPER = Requirement("upper", "case", "UPPER CASE", each(WORD, _upper))
LOWER = Requirement("lower", "case", "lower case", each(WORD, _lower))
TITLE = Requirement("title", "case", "Title Case", each(WORD, _title))


def min_capital_words(name: str, count: int) -> Requirement:
    """At least `count` words in capitals."""
    return Requirement(
        name,
        "capitals",
        f"at least {count} words in CAPITALS",
        at_least(matches(_TOKEN, str.isupper), count),
        {"capital words": (count, UNBOUNDED)},
    )


def max_capital_words(name: str, count: int) -> Requirement:
    """At most `count` words in capitals."""
    return Requirement(
        name,
        "capitals",
        f"at most {count} words in CAPITALS",
        at_most(matches(_TOKEN, str.isupper), count, matches(_TOKEN)),
        {"capital words": (0, count)},
    )
