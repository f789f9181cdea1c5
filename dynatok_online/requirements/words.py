"""Which words: keywords to use, words to avoid, how often one may stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from unicodedata import normalize

from dynatok_online.requirements.folding import fold
from dynatok_online.requirements.verdict import (
    UNBOUNDED,
    WORD,
    Counts,
    Requirement,
    Text,
    Unit,
    at_least,
    at_most,
    matches,
    mentions,
)


def spelled_with(*phrases: str) -> Counts:
    """The bounds of a text that holds these phrases: its words, letters and marks."""
    out: dict[str, tuple[int, int]] = {}
    for phrase in phrases:
        for word in WORD.findall(phrase):
            out[f"word {fold(word)}"] = (1, UNBOUNDED)
        for sign in normalize("NFC", phrase).lower():
            if sign.isalpha():
                out[f"letter {sign}"] = (1, UNBOUNDED)
            elif sign.isdigit():
                out["digits"] = (1, UNBOUNDED)
            elif sign == ",":
                out["commas"] = (1, UNBOUNDED)
    return out


def include(name: str, words: Sequence[str]) -> Requirement:
    """Every keyword stands somewhere, in any case, as part of a word too."""

    def locate(text: Text) -> Iterator[Unit]:
        for word in words:
            found = next(text.mentions(word), None)
            yield Unit(*(found or (text.stop, text.stop)), found is not None)

    return Requirement(name, "keywords", f"use: {', '.join(words)}", locate, spelled_with(*words))


def forbid(name: str, words: Sequence[str]) -> Requirement:
    """None of these words stands anywhere."""

    def find(text: Text) -> Iterable[tuple[int, int]]:
        places = {place for word in words for place in text.mentions(word, word=True)}
        stop = -1
        for place in sorted(places):
            if place[0] >= stop:
                yield place
                stop = place[1]

    return Requirement(
        name,
        "keywords",
        f"avoid: {', '.join(words)}",
        at_most(find, 0, matches(WORD)),
        {f"word {fold(word)}": (0, 0) for word in words},
    )


def min_keyword(name: str, word: str, count: int) -> Requirement:
    """The word stands at least so often, as part of a word too."""
    return Requirement(
        name,
        "keywords",
        f"'{word}' at least {count} times",
        at_least(mentions(word), count),
        {**(spelled_with(word) if count else {}), f"word {fold(word)}": (count, UNBOUNDED)},
    )


def max_keyword(name: str, word: str, count: int) -> Requirement:
    """The word stands at most so often, as part of a word too."""
    return Requirement(
        name,
        "keywords",
        f"'{word}' at most {count} times",
        at_most(mentions(word), count, matches(WORD)),
        {f"word {fold(word)}": (0, count)},
    )


def max_repeats(name: str, count: int) -> Requirement:
    """No word stands more often than `count` times."""

    def locate(text: Text) -> Iterator[Unit]:
        seen: Counter[str] = Counter()
        for match in text.pieces(WORD):
            word = fold(match.group())
            seen[word] += 1
            yield Unit(*match.span(), seen[word] <= count)

    return Requirement(name, "repetition", f"no word more than {count} times", locate)


def no_repeated_runs(name: str, size: int) -> Requirement:
    """No run of `size` words stands twice."""

    def locate(text: Text) -> Iterator[Unit]:
        words = list(text.pieces(WORD))
        seen = set()
        for i in range(len(words) - size + 1):
            run = tuple(fold(word.group()) for word in words[i : i + size])
            yield Unit(words[i].start(), words[i + size - 1].end(), run not in seen)
            seen.add(run)

    return Requirement(name, "repetition", f"no run of {size} words twice", locate)
