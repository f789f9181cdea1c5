"""Upper, lower and title case, and how many words may stand in capitals."""

from __future__ import annotations

import re
from unicodedata import normalize

from dynatok_online.requirements.pieces import APOSTROPHES, TOKEN
from dynatok_online.requirements.verdict import (
    UNBOUNDED,
    WORD,
    Requirement,
    at_least,
    at_most,
    each,
    matches,
)

_CONTRACTIONS = frozenset(("t", "s", "d", "m", "ll", "re", "ve"))


def _has_case(text: str) -> bool:
    return any(c.lower() != c.upper() for c in text)


def _upper(word: str) -> bool | None:
    """No letter that has a capital is small; ß may stay as it is."""
    word = normalize("NFC", word)
    return all(c == c.upper() or c == "ß" for c in word) if _has_case(word) else None


def _lower(word: str) -> bool | None:
    word = normalize("NFC", word)
    return word == word.lower() if _has_case(word) else None


def _title(word: str) -> bool | None:
    """A capital, then small letters; behind an apostrophe either (O’Brien, l’eau, but Can’t)."""
    first, *others = re.split(f"[{APOSTROPHES}]", normalize("NFC", word))
    if not _has_case(first[0]):
        return None
    return _capitalized(first) and all(
        _lower(one) is not False or (_capitalized(one) and one.lower() not in _CONTRACTIONS)
        for one in others
    )


def _capitalized(part: str) -> bool:
    return part[0] == part[0].title() and _lower(part[1:]) is not False


def _capitals(word: str) -> bool:
    return bool(_upper(word)) and any(c.isupper() for c in word)


UPPER = Requirement("upper", "case", "UPPER CASE", each(WORD, _upper))
LOWER = Requirement("lower", "case", "lower case", each(WORD, _lower))
TITLE = Requirement("title", "case", "Title Case", each(WORD, _title))


def min_capital_words(name: str, count: int) -> Requirement:
    """At least `count` words in capitals."""
    return Requirement(
        name,
        "capitals",
        f"at least {count} words in CAPITALS",
        at_least(matches(TOKEN, _capitals), count),
        {"capital words": (count, UNBOUNDED)},
    )


def max_capital_words(name: str, count: int) -> Requirement:
    """At most `count` words in capitals."""
    return Requirement(
        name,
        "capitals",
        f"at most {count} words in CAPITALS",
        at_most(matches(TOKEN, _capitals), count, matches(TOKEN)),
        {"capital words": (0, count)},
    )
