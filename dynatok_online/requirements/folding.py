"""Text as it is compared: canonical forms, cases, apostrophes and blanks make no difference.

`é` is the same written as one character or as `e` with a mark; `STRASSE` holds `straße`, `İSTANBUL`
holds `istanbul`, `don’t` is `don't`, and a no-break space is a space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import normalize

from dynatok_online.requirements.pieces import APOSTROPHES, pattern

_CHARACTER = pattern(r"\X")
_ALIKE = str.maketrans(
    {
        **dict.fromkeys(APOSTROPHES, "'"),
        **dict.fromkeys("‐‑", "-"),
        **dict.fromkeys("\u00ad\u200c\u200d\u2060\ufeff", ""),
        "ı": "i",
    }
)


@lru_cache(maxsize=65536)
def _fold_character(character: str) -> str:
    if character.isspace():
        return " "
    folded = normalize("NFC", normalize("NFC", character).casefold())
    return folded.replace("i\u0307", "i").translate(_ALIKE)


def fold(text: str) -> str:
    """The text as it is compared, runs of blanks as one."""
    return folded(text).text


@dataclass(frozen=True)
class Folded:
    """A folded text; its character *i* comes from `starts[i]` to `stops[i]` of the original."""

    text: str
    starts: list[int]
    stops: list[int]

    def find(self, phrase: str) -> Iterator[tuple[int, int]]:
        """Where a folded phrase stands in the original, one place after the other."""
        at = self.text.find(phrase)
        while at >= 0:
            end = at + len(phrase)
            if self.whole(at, end):
                yield self.span(at, end)
                at = self.text.find(phrase, end)
            else:
                at = self.text.find(phrase, at + 1)

    def whole(self, start: int, stop: int) -> bool:
        """Whether this piece is cut out of no character, as `s` would be out of `ß`."""
        first = start == 0 or self.starts[start - 1] != self.starts[start]
        return first and (stop == len(self.text) or self.starts[stop - 1] != self.starts[stop])

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The place of this piece in the original."""
        return self.starts[start], self.stops[stop - 1]


@lru_cache(maxsize=64)
def folded(text: str) -> Folded:
    """`text` as it is compared, with where each character comes from."""
    out: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for match in _CHARACTER.finditer(text):
        new = _fold_character(match.group())
        if new == " " and out and out[-1] == " ":
            stops[-1] = match.end()
            continue
        for sign in new:
            out.append(sign)
            starts.append(match.start())
            stops.append(match.end())
    return Folded("".join(out), starts, stops)


@lru_cache(maxsize=1024)
def letter(one: str) -> re.Pattern[str]:
    """Matches one letter in either case and form. A letter with a mark is another letter.

    Turkish I is the capital of ı, English I that of i: it counts as both.
    """
    forms = {one, one.upper(), one.title(), one.lower()}
    forms |= {"i": {"i", "I", "İ", "i\u0307"}, "ı": {"ı", "I"}, "σ": {"ς"}, "ß": {"ẞ"}}.get(
        one, set()
    )
    forms = {form for form in forms if len(normalize("NFC", form)) == 1 or form == "i\u0307"}
    forms |= {normalize("NFD", form) for form in forms} | {normalize("NFC", form) for form in forms}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return pattern("(?:" + "|".join(map(re.escape, ordered)) + r")(?!\p{M})")
