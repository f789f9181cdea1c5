"""How long: words, sentences, words of a sentence, paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynatok_online.requirements.pieces import COUNTED
from dynatok_online.requirements.verdict import (
    SENTENCE,
    UNBOUNDED,
    Requirement,
    Text,
    Unit,
    at_least,
    at_most,
    each,
    matches,
)

_DIVIDER = re.compile(r"\s?\*\*\*\s?")


def min_words(name: str, count: int) -> Requirement:
    """At least so many words (runs of letters, digits and underscores; see `pieces`)."""
    locate = at_least(matches(COUNTED), count)
    return Requirement(
        name, "length", f"at least {count} words", locate, {"words": (count, UNBOUNDED)}
    )


def max_words(name: str, count: int) -> Requirement:
    """At most so many words."""
    locate = at_most(matches(COUNTED), count)
    return Requirement(name, "length", f"at most {count} words", locate, {"words": (0, count)})


def min_sentences(name: str, count: int) -> Requirement:
    """At least so many sentences."""
    bounds = {"sentences": (count, UNBOUNDED), "words": (count, UNBOUNDED)}
    locate = at_least(matches(SENTENCE), count)
    return Requirement(name, "length", f"at least {count} sentences", locate, bounds)


def max_sentences(name: str, count: int) -> Requirement:
    """At most so many sentences."""
    locate = at_most(matches(SENTENCE), count)
    bounds = {"sentences": (0, count)}
    return Requirement(name, "length", f"at most {count} sentences", locate, bounds)


def short_sentences(name: str, count: int) -> Requirement:
    """No sentence has more than so many words."""
    locate = each(SENTENCE, lambda sentence: len(COUNTED.findall(sentence)) <= count)
    return Requirement(name, "length", f"at most {count} words a sentence", locate)


def paragraphs(name: str, count: int) -> Requirement:
    """Exactly so many paragraphs, divided by ***."""

    def locate(text: Text) -> Iterator[Unit]:
        at, number, found = text.start, 0, 0
        dividers = [*text.pieces(_DIVIDER), None]
        for divider in dividers:
            stop = divider.start() if divider else text.stop
            empty = not text.whole[at:stop].strip()
            if not empty:
                found += 1
                yield Unit(at, stop, found <= count)
            elif 0 < number < len(dividers) - 1:
                yield Unit(at, stop, False)
            at, number = divider.end() if divider else stop, number + 1
        yield from (Unit(text.stop, text.stop, False) for _ in range(count - found))

    bounds = {"paragraphs": (count, count)}
    return Requirement(name, "length", f"{count} paragraphs, *** between", locate, bounds)
