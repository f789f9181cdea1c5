"""All kinds of requirements, found by name; compositions and contradictions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from unicodedata import normalize

from dynatok_online.requirements import case, layout, length, signs, sound, words
from dynatok_online.requirements.core import Counts, Requirement, Text, Unit
from dynatok_online.requirements.language import LANGUAGES, language

EXCLUSIVE = frozenset({"case", "words", "numbers", "ending", "envelope", "language"})
"""Families of which a text can follow one requirement at a time."""


@dataclass(frozen=True)
class Kind:
    """A kind of requirement. `example` is a whole name: `upper`, `max_words:20`."""

    example: str
    make: Callable[[str, str], Requirement]
    """Called with the whole name and what stands after its colon; ValueError says what should."""
    unit: str
    """What is judged, one by one."""
    ifeval: str = ""
    """The instruction of IFEval (or IFBench) that asks for the same."""

    @property
    def name(self) -> str:
        """The name without its parameter."""
        return self.example.partition(":")[0]


def _plain(one: Requirement) -> Callable[[str, str], Requirement]:
    def make(name: str, given: str) -> Requirement:
        if given:
            raise ValueError(f"it takes no parameter; write {one.name!r}")
        return one

    return make


def _count(
    make: Callable[[str, int], Requirement], least: int = 0
) -> Callable[[str, str], Requirement]:
    def of(name: str, given: str) -> Requirement:
        count = _number(given)
        if count < least:
            raise ValueError(f"write {least} or more where {given!r} stands")
        return make(name, count)

    return of


def _phrase(make: Callable[[str, str], Requirement]) -> Callable[[str, str], Requirement]:
    def of(name: str, given: str) -> Requirement:
        if not given.strip():
            raise ValueError("write a phrase after the colon")
        return make(name, given.strip())

    return of


def _list(make: Callable[[str, list[str]], Requirement]) -> Callable[[str, str], Requirement]:
    def of(name: str, given: str) -> Requirement:
        listed = [word.strip() for word in given.split(",") if word.strip()]
        if not listed:
            raise ValueError("write words after the colon, with commas between them")
        return make(name, listed)

    return of


def _letter(make: Callable[[str, str], Requirement]) -> Callable[[str, str], Requirement]:
    return lambda name, given: make(name, _one_letter(given))


def _counted(
    make: Callable[[str, str, int], Requirement], letter: bool = False
) -> Callable[[str, str], Requirement]:
    def of(name: str, given: str) -> Requirement:
        what, equals, count = given.rpartition("=")
        if not equals or not what.strip():
            raise ValueError(f"write {'a letter' if letter else 'a word'}, =, and a number")
        return make(name, _one_letter(what) if letter else what.strip(), _number(count))

    return of


def _language(name: str, given: str) -> Requirement:
    if given not in LANGUAGES:
        raise ValueError(f"write one of {', '.join(LANGUAGES)} after the colon")
    return language(name, given)


MOST = 10_000
"""Largest number in a requirement: each word or letter that is missing is a unit."""
LONGEST = 1_000
"""Most characters of a requirement's name, its parameters and compositions included."""


def _number(given: str) -> int:
    digits = given.strip().lstrip("0") or "0"
    if not given.strip().isdecimal():
        raise ValueError(f"write a whole number where {given!r} stands")
    if len(digits) > len(str(MOST)) or int(digits) > MOST:
        raise ValueError(f"write a whole number up to {MOST:,} where {_short(given)} stands")
    return int(digits)


def _short(given: str) -> str:
    return repr(given if len(given) <= 40 else f"{given[:40]}...")


def _one_letter(given: str) -> str:
    given = normalize("NFC", given.strip().replace("İ", "i").lower())
    if len(given) != 1 or not given.isalpha():
        raise ValueError(f"write one letter where {given!r} stands")
    return given


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("upper", _plain(case.UPPER), "word", "change_case:english_capital"),
        Kind("lower", _plain(case.LOWER), "word", "change_case:english_lowercase"),
        Kind("title", _plain(case.TITLE), "word", "format:title_case (IFBench)"),
        Kind(
            "min_capital_words:3",
            _count(case.min_capital_words),
            "word in capitals, missing one",
            "change_case:capital_word_frequency",
        ),
        Kind(
            "max_capital_words:3",
            _count(case.max_capital_words),
            "word",
            "change_case:capital_word_frequency",
        ),
        *(Kind(one.name, _plain(one), "word of a list") for one in words.TOPICS),
        Kind("include:boats,gulls", _list(words.include), "keyword", "keywords:existence"),
        Kind("forbid:boats,gulls", _list(words.forbid), "word", "keywords:forbidden_words"),
        Kind(
            "min_keyword:boats=2",
            _counted(words.min_keyword),
            "occurrence, missing one",
            "keywords:frequency",
        ),
        Kind("max_keyword:boats=2", _counted(words.max_keyword), "word", "keywords:frequency"),
        Kind("max_repeats:2", _count(words.max_repeats), "word", "words:repeats (IFBench)"),
        Kind("no_repeated_runs:3", _count(words.no_repeated_runs, least=1), "run of words"),
        Kind("digits", _plain(signs.DIGITS), "number"),
        Kind("spelled", _plain(signs.SPELLED), "number"),
        Kind("no_digits", _plain(signs.NO_DIGITS), "chunk between blanks"),
        Kind("no_e", lambda name, given: signs.no_letter(name, "e"), "word"),
        Kind("no_letter:a", _letter(signs.no_letter), "word"),
        Kind(
            "min_letter:a=5",
            _counted(signs.min_letter, letter=True),
            "letter, missing one",
            "keywords:letter_frequency",
        ),
        Kind(
            "max_letter:a=5",
            _counted(signs.max_letter, letter=True),
            "word",
            "keywords:letter_frequency",
        ),
        Kind("no_comma", _plain(signs.NO_COMMA), "chunk between blanks", "punctuation:no_comma"),
        Kind("brackets", _plain(signs.BRACKETS), "word"),
        Kind(
            "min_placeholders:2",
            _count(signs.min_placeholders),
            "placeholder, missing one",
            "detectable_content:number_placeholders",
        ),
        Kind("exclaim", _plain(signs.EXCLAIM), "sentence"),
        Kind("ask", _plain(signs.ASK), "sentence"),
        Kind(
            "min_words:20",
            _count(length.min_words),
            "word, missing one",
            "length_constraints:number_words",
        ),
        Kind("max_words:20", _count(length.max_words), "word", "length_constraints:number_words"),
        Kind(
            "min_sentences:3",
            _count(length.min_sentences),
            "sentence, missing one",
            "length_constraints:number_sentences",
        ),
        Kind(
            "max_sentences:3",
            _count(length.max_sentences),
            "sentence",
            "length_constraints:number_sentences",
        ),
        Kind("short_sentences:12", _count(length.short_sentences), "sentence"),
        Kind(
            "paragraphs:2",
            _count(length.paragraphs),
            "paragraph, missing one",
            "length_constraints:number_paragraphs",
        ),
        Kind(
            "bullets:3",
            _count(layout.bullets),
            "bullet point, missing one",
            "detectable_format:number_bullet_lists",
        ),
        Kind(
            "json",
            _plain(layout.JSON),
            "text, from the first error",
            "detectable_format:json_format",
        ),
        Kind("quoted", _plain(layout.QUOTED), "first and last character", "startend:quotation"),
        Kind("headed", _plain(layout.HEADED), "title", "detectable_format:title"),
        Kind(
            "min_highlights:2",
            _count(layout.min_highlights),
            "highlight, missing one",
            "detectable_format:number_highlighted_sections",
        ),
        Kind(
            "min_sections:2",
            _count(layout.min_sections),
            "section's beginning, missing one",
            "detectable_format:multiple_sections",
        ),
        Kind(
            "postscript:P.S.", _phrase(layout.postscript), "marker", "detectable_content:postscript"
        ),
        Kind("starts_with:We saw", _phrase(layout.starts_with), "first characters"),
        Kind(
            "ends_with:The end.",
            _phrase(layout.ends_with),
            "last characters",
            "startend:end_checker",
        ),
        Kind("language:en", _language, "sentence", "language:response_language"),
        Kind("alliteration", _plain(sound.ALLITERATION), "word of a sentence"),
        Kind("rhyme", _plain(sound.RHYME), "last word of every second line"),
    )
}

REQUIREMENTS: dict[str, Requirement] = {
    kind.name: kind.make(kind.name, "") for kind in KINDS.values() if ":" not in kind.example
}
"""The requirements that take no parameter."""


@lru_cache(maxsize=4096)
def requirement(name: str) -> Requirement:
    """The requirement of that name; ValueError names the nearest right one.

    `upper+no_comma` asks for both; ValueError where they contradict each other.
    """
    if len(name) > LONGEST:
        raise ValueError(
            f"requirement {_short(name)} has {len(name):,} characters; write at most {LONGEST:,}"
        )
    if "+" in name:
        return _both(name, [requirement(part.strip()) for part in name.split("+")])
    if name in REQUIREMENTS:
        return REQUIREMENTS[name]
    kind, _, given = name.partition(":")
    if kind in KINDS:
        try:
            return KINDS[kind].make(name, given)
        except ValueError as error:
            example = KINDS[kind].example
            raise ValueError(f"requirement {name!r}: {error} (as in {example!r})") from None
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(KINDS)}"
    raise ValueError(f"there is no requirement {name!r}; {hint}")


def _both(name: str, members: list[Requirement]) -> Requirement:
    for one, other in combinations(members, 2):
        if why := contradiction(one.name, other.name):
            raise ValueError(f"requirement {name!r}: {why}")

    def locate(text: Text) -> Iterable[Unit]:
        return [unit for member in members for unit in member.locate(text)]

    counts: dict[str, tuple[int, int]] = {}
    for member in members:
        for quantity, (least, most) in member.counts.items():
            low, high = counts.get(quantity, (least, most))
            counts[quantity] = (max(low, least), min(high, most))
    text = " and ".join(member.text for member in members)
    return Requirement(name, "+".join(member.family for member in members), text, locate, counts)


@lru_cache(maxsize=4096)
def contradiction(name: str, other: str) -> str:
    """Why no text can follow both requirements; empty where one can, as far as is known."""
    for one in name.split("+"):
        for two in other.split("+"):
            first, second = requirement(one.strip()), requirement(two.strip())
            if first.name == second.name:
                continue
            if first.family == second.family and first.family in EXCLUSIVE:
                return f"{first.name!r} and {second.name!r} cannot both hold"
            if quantity := _apart(first.counts, second.counts):
                return f"{first.name!r} and {second.name!r} cannot both hold: see their {quantity}"
    return ""


def _apart(one: Counts, other: Counts) -> str:
    """A quantity that both bound, with no number between their bounds."""
    for quantity in one.keys() & other.keys():
        if max(one[quantity][0], other[quantity][0]) > min(one[quantity][1], other[quantity][1]):
            return quantity
    return ""


def family(name: str) -> tuple[Requirement, ...]:
    """All requirements of one family, in registry order; ValueError if there is none."""
    members = tuple(item for item in REQUIREMENTS.values() if item.family == name)
    if members:
        return members
    families = list(dict.fromkeys(item.family for item in REQUIREMENTS.values()))
    near = difflib.get_close_matches(name, families, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(families)}"
    raise ValueError(f"there is no requirement family {name!r}; {hint}")
