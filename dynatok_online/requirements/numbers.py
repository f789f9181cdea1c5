"""Numbers as people write them: in digits, and in the words of several languages.

`twenty-one`, `zweihundertfünf`, `vingt et un`, `treinta y uno`, `yirmi bir` and `二十一` are one
number each. The word for one alone is none: in running text it is mostly an article or a pronoun.
A word that is a number in one language and something else in another (`once`, `bin`, `elf`) is a
number only in a sentence of that language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dynatok_online.requirements.folding import fold, folded
from dynatok_online.requirements.language import guess
from dynatok_online.requirements.pieces import SENTENCE, pattern
from dynatok_online.requirements.verdict import Text, Unit


@dataclass(frozen=True)
class _Words:
    """The number words of one language; `link` stands between tens or scales and what follows."""

    one: str
    units: str
    teens: str
    tens: str
    scales: str
    links: str

    @property
    def all(self) -> str:
        return f"{self.units} {self.teens} {self.tens} {self.scales}"


_LANGUAGES = {
    "en": _Words(
        "one a an",
        "zero two three four five six seven eight nine",
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
        "hundred thousand million billion trillion hundreds thousands millions billions",
        "and",
    ),
    "de": _Words("eine einer", "", "", "", "million millionen milliarde milliarden", ""),
    "fr": _Words(
        "un une",
        "zéro deux trois quatre cinq six sept huit neuf",
        "dix onze douze treize quatorze quinze seize",
        "vingt vingts trente quarante cinquante soixante septante huitante nonante",
        "cent cents mille million millions milliard milliards",
        "et",
    ),
    "es": _Words(
        "un uno una",
        "cero dos tres cuatro cinco seis siete ocho nueve",
        "diez once doce trece catorce quince dieciséis diecisiete dieciocho diecinueve veintiuno "
        "veintiún veintiuna veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
        "veintiocho veintinueve",
        "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
        "cien ciento cientos doscientos doscientas trescientos trescientas cuatrocientos "
        "cuatrocientas quinientos quinientas seiscientos seiscientas setecientos setecientas "
        "ochocientos ochocientas novecientos novecientas mil millón millones",
        "y",
    ),
    "tr": _Words(
        "bir",
        "sıfır iki üç dört beş altı yedi sekiz dokuz",
        "",
        "on yirmi otuz kırk elli altmış yetmiş seksen doksan",
        "yüz bin milyon milyar",
        "",
    ),
}
_AMBIGUOUS = {
    fold(word): code
    for code, words in {
        "de": "elf acht null",
        "fr": "cent cents neuf seize",
        "es": "once mil quince",
        "tr": "on bin elli yüz altı yedi kırk",
    }.items()
    for word in words.split()
}


def _any(words: str) -> str:
    return (
        "(?:" + "|".join(map(re.escape, sorted(fold(words).split(), key=len, reverse=True))) + ")"
    )


def _source(words: _Words) -> str:
    """A pattern of one number in words, of folded text."""
    if not words.units:
        return rf"{_any(words.scales)}\b"
    link = rf"(?:{_any(words.links)}[ ])?" if words.links else ""
    low = _any(f"{words.one.split()[0]} {words.one.split()[-1]} {words.units} {words.teens}")
    any_word = _any(f"{words.one} {words.all}")
    scale = _any(words.scales)
    tens = _any(words.tens)
    # One, a, an: only before a scale, never on their own.
    first = rf"(?:{_any(words.one)}(?=[- ]{scale}\b)|{_any(words.all)})\b"
    more = "|".join(
        (
            rf"-{any_word}\b",
            rf"[ ]{scale}\b",
            rf"(?<=\b{tens})[ ]{link}{low}\b",
            rf"(?<=\b{scale})[ ]{link}{any_word}\b",
        )
    )
    return rf"{first}(?:{more})*+"


_GERMAN_ONE = "(?:ein|zwei|zwo|drei|vier|fünf|sech(?:s|(?=z))|sieb(?:en|(?=z))|acht|neun)"
_GERMAN = (
    rf"(?!(?:ein|und)+\b)(?:{_GERMAN_ONE}|eins|zehn|elf|zwölf|zwanzig|dreissig|vierzig|fünfzig"
    r"|sechzig|siebzig|achtzig|neunzig|hundert|tausend|null|und(?!\b))+\b"
    r"(?:[ ]million(?:en)?|[ ]milliarden?)?"
)
_HAN = "〇零一二三四五六七八九十百千万億亿兆两兩"
_COUNTERS = "个個人本匹枚冊册只隻条條張张台杯頭头羽件名位"
_COUNTERS += "年月日天次週周歳岁点點時时回階层倍円元块つ度辆间座棵"
_EASTERN = rf"(?!千万(?:别|不|要)|万一|一一|十分)[{_HAN}](?:[{_HAN}]++|(?<!一)(?=[{_COUNTERS}]))"
_DIGITS = pattern(
    r"(?<![[\p{L}\p{N}_]--[\p{Han}\p{Hiragana}\p{Katakana}]])"
    r"(?<!\p{L}\p{N}*[.,:/])"
    r"\p{Nd}++(?:[.,'٫٬/:]\p{Nd}++|[\u00A0\u202F\u2009]\p{Nd}{3}(?!\p{Nd}))*+"
    r"(?:st|nd|rd|th|e|er|re|ère|è|ème|º|ª|s)?"
    r"(?![[\p{L}\p{N}_]--[\p{Han}\p{Hiragana}\p{Katakana}]])"
    r"(?:[ \u00A0\u202F](?i:hundred|thousand|(?:m|b|tr)illion|million(?:en|s)?|milliarden?"
    r"|milliards?|mill(?:ón|ones)|mil|mille|bin|milyon|milyar)\b)?"
)
_SPELLED = pattern(
    r"\b(?:" + "|".join([*map(_source, _LANGUAGES.values()), _GERMAN]) + rf")|{_EASTERN}"
)


def numbers(text: Text) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether in digits) of every number that lies wholly in the text, in order."""
    found = [(*match.span(), True) for match in _DIGITS.finditer(text.whole)]
    taken = {at for start, stop, _ in found for at in range(start, stop)}
    plain = folded(text.whole)
    language_at = _Languages(text.whole)
    for match in _SPELLED.finditer(plain.text):
        start, stop = plain.span(*match.span())
        codes = {_AMBIGUOUS.get(word) for word in re.split("[- ]", match.group())}
        if start not in taken and (None in codes or language_at(start) in codes):
            found.append((start, stop, False))
    for start, stop, in_digits in sorted(found):
        if text.holds(start, stop):
            yield start, stop, in_digits


class _Languages:
    """The language of the sentence at a place; places are asked for in order."""

    def __init__(self, whole: str) -> None:
        self._sentences = SENTENCE.finditer(whole)
        self._stop = 0
        self._code: str | None = None

    def __call__(self, at: int) -> str | None:
        while at >= self._stop and (sentence := next(self._sentences, None)):
            self._stop, self._code = sentence.end(), guess(sentence.group())
        return self._code


def locate_digits(text: Text) -> Iterator[Unit]:
    """Every number; those in digits hold."""
    yield from (Unit(start, stop, in_digits) for start, stop, in_digits in numbers(text))


def locate_spelled(text: Text) -> Iterator[Unit]:
    """Every number; those in words hold."""
    yield from (Unit(start, stop, not in_digits) for start, stop, in_digits in numbers(text))
