"""Units, verdicts, and the four shapes that most requirements have.

each        every piece that a pattern matches is judged on its own
at_least    the pieces that were found hold; what is missing fails at the end of the text
at_most     the pieces beyond the last allowed one fail
exactly     both
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dynatok_online.requirements.folding import fold, folded
from dynatok_online.requirements.pieces import CHUNK, LINE, SENTENCE, WORD, pattern

__all__ = [
    "CHUNK",
    "LINE",
    "SENTENCE",
    "UNBOUNDED",
    "WORD",
    "Counts",
    "Find",
    "Locate",
    "Requirement",
    "Text",
    "Unit",
    "Verdict",
    "at_least",
    "at_most",
    "each",
    "exactly",
    "matches",
    "mentions",
]

UNBOUNDED = 10**9
_INSIDE_WORD = pattern(r"(?<=\w\p{M}*)(?<![\p{Han}\p{Hiragana}]\p{M}*)[\w--[\p{Han}\p{Hiragana}]]")
Counts = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Unit:
    """One judged piece: characters `start` to `stop` (exclusive) of the verified text."""

    start: int
    stop: int
    ok: bool
    value: float | None = field(default=None, repr=False)
    """How far it holds, in [0, 1], where more is known than `ok`."""


@dataclass(frozen=True)
class Verdict:
    """The judged pieces of one text, in order."""

    units: tuple[Unit, ...]

    @property
    def score(self) -> float | None:
        """Share of the units that hold, or mean of their values, in [0, 1]; None without units."""
        if not self.units:
            return None
        values = (unit.ok if unit.value is None else unit.value for unit in self.units)
        return sum(values) / len(self.units)

    @property
    def holds(self) -> bool | None:
        """Whether all units hold, as a checker of whole texts asks; None where there is none."""
        return all(unit.ok for unit in self.units) if self.units else None


@dataclass(frozen=True)
class Text:
    """A text between its neighbours: characters `start` to `stop` of `whole`."""

    whole: str
    start: int
    stop: int

    @property
    def here(self) -> str:
        """The text itself."""
        return self.whole[self.start : self.stop]

    def holds(self, start: int, stop: int) -> bool:
        """Whether this place of the whole lies in this text."""
        return self.start <= start and stop <= self.stop

    def pieces(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """What the pattern matches in the whole, as far as it lies wholly in this text."""
        for match in pattern.finditer(self.whole):
            if self.holds(*match.span()):
                yield match

    def mentions(self, phrase: str, *, word: bool = False) -> Iterator[tuple[int, int]]:
        """Where a phrase stands wholly in this text, in any case and canonical form.

        `word`: only where neither end of it is inside a word.
        """
        for start, stop in folded(self.whole).find(fold(phrase)):
            apart = not word or not (self._inside(start) or self._inside(stop))
            if apart and self.holds(start, stop):
                yield start, stop

    def _inside(self, at: int) -> bool:
        return 0 < at < len(self.whole) and _INSIDE_WORD.match(self.whole, at) is not None


Locate = Callable[[Text], Iterable[Unit]]
"""The units of a text, at positions of its `whole`."""
Find = Callable[[Text], Iterable[tuple[int, int]]]
"""The places of a text where something stands."""


@dataclass(frozen=True)
class Requirement:
    """Something a text can be checked for; `text` is what stands in the slot."""

    name: str
    family: str
    text: str
    locate: Locate
    counts: Counts = field(default_factory=dict)
    """What it bounds: quantity (`words`, `letter e`) -> least and most. Two requirements whose
    bounds leave nothing over contradict each other."""

    def verify(self, text: str, *, before: str = "", after: str = "") -> Verdict:
        """Judge the pieces that lie wholly in `text`.

        `before` and `after` are the text that precedes and follows it (the response so far, the
        next pass); pieces that reach into them do not count. With no `after`, the text is taken
        to end where it ends.
        """
        start = len(before)
        found = self.locate(Text(before + text + after, start, start + len(text)))
        units = (Unit(u.start - start, u.stop - start, u.ok, u.value) for u in found)
        return Verdict(tuple(sorted(units, key=lambda unit: (unit.start, unit.stop))))


def each(pattern: re.Pattern[str], judge: Callable[[str], bool | None]) -> Locate:
    """Every matched piece is a unit, unless `judge` has nothing to say about it (None)."""

    def locate(text: Text) -> Iterator[Unit]:
        for match in text.pieces(pattern):
            ok = judge(match.group())
            if ok is not None:
                yield Unit(match.start(), match.end(), ok)

    return locate


def matches(pattern: re.Pattern[str], wanted: Callable[[str], bool] = bool) -> Find:
    """The places where the pattern matches something wanted."""
    return lambda text: (m.span() for m in text.pieces(pattern) if wanted(m.group()))


def mentions(phrase: str) -> Find:
    """The places where the phrase stands, as part of a word too."""
    return lambda text: text.mentions(phrase)


def at_least(find: Find, count: int) -> Locate:
    """What is found holds; each one that is missing fails, at the end of the text."""

    def locate(text: Text) -> Iterator[Unit]:
        places = list(find(text))
        yield from (Unit(*place, True) for place in places)
        yield from (Unit(text.stop, text.stop, False) for _ in range(count - len(places)))

    return locate


def at_most(find: Find, count: int, evidence: Find | None = None) -> Locate:
    """What is found beyond `count` fails. Where nothing stands, `evidence` holds (by default
    what is found itself: a text without it says nothing)."""

    def locate(text: Text) -> Iterator[Unit]:
        over = list(find(text))[count:]
        yield from (Unit(*place, False) for place in over)
        ends = [end for _, end in over]
        for start, stop in (evidence or find)(text):
            after = bisect_right(ends, start)  # the first of them that ends behind `start`
            if after == len(over) or over[after][0] >= stop:
                yield Unit(start, stop, True)

    return locate


def exactly(find: Find, count: int) -> Locate:
    """`at_least` and `at_most` of the same."""

    def locate(text: Text) -> Iterator[Unit]:
        places = list(find(text))
        yield from (Unit(*place, i < count) for i, place in enumerate(places))
        yield from (Unit(text.stop, text.stop, False) for _ in range(count - len(places)))

    return locate
