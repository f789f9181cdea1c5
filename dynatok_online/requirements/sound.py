"""Alliteration and rhyme, as far as spelling shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynatok_online.requirements.core import LINE, SENTENCE, WORD, Requirement, Text, Unit

_RHYME = re.compile(r"[aeiouy]+[^aeiouy]*e?$")
_SHORT = 3
"""Words of so few letters need not alliterate: a, the, of."""


def _locate_alliteration(text: Text) -> Iterator[Unit]:
    for sentence in text.pieces(SENTENCE):
        words = [
            word
            for word in WORD.finditer(text.whole, sentence.start(), sentence.end())
            if len(word.group()) > _SHORT and word.group()[0].isalpha()
        ]
        for word in words[1:]:
            same = word.group()[0].lower() == words[0].group()[0].lower()
            yield Unit(word.start(), word.end(), same)


def _rhyme(word: str) -> str:
    found = _RHYME.search(word.lower())
    return found.group() if found else word.lower()


def _locate_rhyme(text: Text) -> Iterator[Unit]:
    ends = []
    for line in text.pieces(LINE):
        words = list(WORD.finditer(text.whole, line.start(), line.end()))
        if words:
            ends.append(words[-1])
    for first, second in zip(ends[::2], ends[1::2], strict=False):
        one, two = first.group().lower(), second.group().lower()
        yield Unit(second.start(), second.end(), one != two and _rhyme(one) == _rhyme(two))


ALLITERATION = Requirement("alliteration", "sound", "alliteration", _locate_alliteration)
RHYME = Requirement("rhyme", "sound", "rhyming couplets", _locate_rhyme)
