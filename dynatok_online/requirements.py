"""What a slot can ask for, and the programs that check it.

A requirement judges located pieces of a text (its *units*), one by one. A piece about which it
says nothing is no unit, and a text without units is no evidence: its score is None and must not
enter an average. The requirements of one family exclude each other, so a slot holds one of them.

A text generated in one pass often begins and ends inside a word. Such a word was written under
two states and belongs to neither: give the neighbouring text and it is left out.

    >>> verdict = requirement("upper").verify("AN and THREE", before="the oce", after=" boats")
    >>> verdict.score, [(u.start, u.stop, u.ok) for u in verdict.units]
    (0.5, [(3, 6, False), (7, 12, True)])
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dynatok_online.wordlists import NUMBER_WORDS, WORD_LISTS

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_BRACKETABLE = re.compile(r"\[?[^\W_]+(?:'[^\W_]+)*\]?")


@dataclass(frozen=True)
class Unit:
    """One judged piece: characters `start` to `stop` (exclusive) of the verified text."""

    start: int
    stop: int
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """The judged pieces of one text, in order."""

    units: tuple[Unit, ...]

    @property
    def score(self) -> float | None:
        """Share of the units that hold, in [0, 1]; None where there is no unit."""
        if not self.units:
            return None
        return sum(unit.ok for unit in self.units) / len(self.units)


@dataclass(frozen=True)
class Requirement:
    """Something a text can be checked for.

    `judge` gets one piece that `pattern` matched and answers True (holds), False (violated) or
    None (this piece says nothing). `text` is what stands in the slot.
    """

    name: str
    family: str
    text: str
    judge: Callable[[str], bool | None]
    pattern: re.Pattern[str] = field(default=_WORD)

    def verify(self, text: str, *, before: str = "", after: str = "") -> Verdict:
        """Judge the pieces that lie wholly in `text`.

        `before` and `after` are the text that precedes and follows it (the response so far, the
        next pass); pieces that reach into them do not count. With no `after`, the text is taken
        to end where it ends.
        """
        start, stop = len(before), len(before) + len(text)
        units = []
        for match in self.pattern.finditer(before + text + after):
            if match.start() < start or match.end() > stop:
                continue
            ok = self.judge(match.group())
            if ok is not None:
                units.append(Unit(match.start() - start, match.end() - start, ok))
        return Verdict(tuple(units))


def _upper(word: str) -> bool | None:
    return word.isupper() if any(c.isalpha() for c in word) else None


def _lower(word: str) -> bool | None:
    return word.islower() if any(c.isalpha() for c in word) else None


def _title(word: str) -> bool | None:
    if not word[0].isalpha():
        return None
    rest = word[1:]
    return word[0].isupper() and (rest.islower() or not any(c.isalpha() for c in rest))


def _from_list(topic: str) -> Callable[[str], bool | None]:
    """Words of this list hold, words of the other lists do not, any other word is free."""
    wanted = WORD_LISTS[topic]
    others = frozenset[str]().union(*(words for name, words in WORD_LISTS.items() if name != topic))

    def judge(word: str) -> bool | None:
        word = word.lower()
        return True if word in wanted else False if word in others else None

    return judge


def _is_digits(word: str) -> bool | None:
    if word.isdecimal():
        return True
    return False if word.lower() in NUMBER_WORDS else None


def _is_spelled(word: str) -> bool | None:
    ok = _is_digits(word)
    return None if ok is None else not ok


def _without(letter: str) -> Callable[[str], bool | None]:
    return lambda word: letter not in word.lower()


def _bracketed(piece: str) -> bool | None:
    return piece.startswith("[") and piece.endswith("]")


def _registry(items: Iterable[Requirement]) -> dict[str, Requirement]:
    return {item.name: item for item in items}


REQUIREMENTS: dict[str, Requirement] = _registry(
    (
        Requirement("upper", "case", "UPPER CASE", _upper),
        Requirement("lower", "case", "lower case", _lower),
        Requirement("title", "case", "Title Case", _title),
        Requirement("sea", "words", "the sea", _from_list("sea")),
        Requirement("forest", "words", "the forest", _from_list("forest")),
        Requirement("city", "words", "the city", _from_list("city")),
        Requirement("digits", "numbers", "as digits", _is_digits),
        Requirement("spelled", "numbers", "in words", _is_spelled),
        Requirement("no_e", "letters", "no letter e", _without("e")),
        Requirement("brackets", "marks", "[brackets]", _bracketed, _BRACKETABLE),
    )
)


def requirement(name: str) -> Requirement:
    """The requirement of that name; ValueError names the nearest right one."""
    if name in REQUIREMENTS:
        return REQUIREMENTS[name]
    near = difflib.get_close_matches(name, REQUIREMENTS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(REQUIREMENTS)}"
    raise ValueError(f"there is no requirement {name!r}; {hint}")


def family(name: str) -> tuple[Requirement, ...]:
    """All requirements of one family, in registry order; ValueError if there is none."""
    members = tuple(item for item in REQUIREMENTS.values() if item.family == name)
    if members:
        return members
    families = list(dict.fromkeys(item.family for item in REQUIREMENTS.values()))
    near = difflib.get_close_matches(name, families, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(families)}"
    raise ValueError(f"there is no requirement family {name!r}; {hint}")
