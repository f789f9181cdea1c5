"""Alliteration and rhyme, as far as spelling shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import normalize

from dynatok_online.requirements.folding import fold
from dynatok_online.requirements.pieces import pattern
from dynatok_online.requirements.verdict import LINE, SENTENCE, WORD, Requirement, Text, Unit

_RHYME = re.compile(r"[aeiouy]+[^aeiouy]*e?$")
_UNSPELLED = pattern(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_ACCENTED = frozenset("áàâéèêëíìîóòôúùû")
_SHORT = 3
"""Words of so few letters need not alliterate: a, the, of."""


def _locate_alliteration(text: Text) -> Iterator[Unit]:
    for sentence in text.pieces(SENTENCE):
        words = [
            word
            for word in WORD.finditer(text.whole, sentence.start(), sentence.end())
            if len(fold(word.group())) > _SHORT and word.group()[0].isalpha()
        ]
        for word in words[1:]:
            same = fold(word.group())[0] == fold(words[0].group())[0]
            yield Unit(word.start(), word.end(), same)


def _rhyme(word: str) -> str:
    """The end of a folded word from its last vowels on; an accent among them begins the rhyme."""
    plain = "".join(normalize("NFD", sign)[0] for sign in word)
    found = _RHYME.search(plain)
    if found is None:
        return word
    end = word[found.start() :]
    accents = [at for at, sign in enumerate(end) if sign in _ACCENTED]
    return end[accents[-1] :] if accents else end


def _locate_rhyme(text: Text) -> Iterator[Unit]:
    ends = []
    for line in text.pieces(LINE):
        words = list(WORD.finditer(text.whole, line.start(), line.end()))
        if words:
            ends.append(words[-1])
    for first, second in zip(ends[::2], ends[1::2], strict=False):
        one, two = fold(first.group()), fold(second.group())
        if _UNSPELLED.search(one + two):
            continue
        yield Unit(second.start(), second.end(), one != two and _rhyme(one) == _rhyme(two))


ALLITERATION = Requirement("alliteration", "sound", "alliteration", _locate_alliteration)
RHYME = Requirement("rhyme", "sound", "rhyming couplets", _locate_rhyme)
