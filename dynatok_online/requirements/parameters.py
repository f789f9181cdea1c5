"""What may stand after a requirement's colon: how it is read, and what is said where it is wrong.

Each function takes what makes a requirement of the value, and returns what makes one of the whole
name and the written parameter; ValueError says what should stand there.
"""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import normalize

from dynatok_online.requirements.language import LANGUAGES, language
from dynatok_online.requirements.verdict import Requirement

Make = Callable[[str, str], Requirement]
MOST = 10_000
"""Largest number in a requirement: each word or letter that is missing is a unit."""
LONGEST = 1_000
"""Most characters of a requirement's name, its parameters and compositions included."""


def plain(one: Requirement) -> Make:
    """Nothing: there is one requirement of this kind."""

    def make(name: str, given: str) -> Requirement:
        if given:
            raise ValueError(f"it takes no parameter; write {one.name!r}")
        return one

    return make


def count(make: Callable[[str, int], Requirement], least: int = 0) -> Make:
    """A whole number from `least` to `MOST`."""

    def of(name: str, given: str) -> Requirement:
        number = _number(given)
        if number < least:
            raise ValueError(f"write {least} or more where {given!r} stands")
        return make(name, number)

    return of


def phrase(make: Callable[[str, str], Requirement]) -> Make:
    """Any text."""

    def of(name: str, given: str) -> Requirement:
        if not given.strip():
            raise ValueError("write a phrase after the colon")
        return make(name, given.strip())

    return of


def word_list(make: Callable[[str, list[str]], Requirement]) -> Make:
    """Words or phrases with commas between them."""

    def of(name: str, given: str) -> Requirement:
        listed = [word.strip() for word in given.split(",") if word.strip()]
        if not listed:
            raise ValueError("write words after the colon, with commas between them")
        return make(name, listed)

    return of


def letter(make: Callable[[str, str], Requirement]) -> Make:
    """One letter."""
    return lambda name, given: make(name, _one_letter(given))


def counted(make: Callable[[str, str, int], Requirement], letter: bool = False) -> Make:
    """A word (or letter), =, and a whole number."""

    def of(name: str, given: str) -> Requirement:
        what, equals, number = given.rpartition("=")
        if not equals or not what.strip():
            raise ValueError(f"write {'a letter' if letter else 'a word'}, =, and a number")
        return make(name, _one_letter(what) if letter else what.strip(), _number(number))

    return of


def language_code(name: str, given: str) -> Requirement:
    """A language that is known."""
    if given not in LANGUAGES:
        raise ValueError(f"write one of {', '.join(LANGUAGES)} after the colon")
    return language(name, given)


def _number(given: str) -> int:
    digits = given.strip().lstrip("0") or "0"
    if not given.strip().isdecimal():
        raise ValueError(f"write a whole number where {given!r} stands")
    if len(digits) > len(str(MOST)) or int(digits) > MOST:
        raise ValueError(f"write a whole number up to {MOST:,} where {short(given)} stands")
    return int(digits)


def short(given: str) -> str:
    """The beginning of a long text, quoted for an error."""
    return repr(given if len(given) <= 40 else f"{given[:40]}...")


def _one_letter(given: str) -> str:
    given = normalize("NFC", given.strip().replace("İ", "i").lower())
    if len(given) != 1 or not given.isalpha():
        raise ValueError(f"write one letter where {given!r} stands")
    return given
