"""The form of a text: lists, JSON, quotes, titles, highlights, sections, first and last words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

from dynatok_online.requirements.folding import fold, folded
from dynatok_online.requirements.pieces import LINE, pattern
from dynatok_online.requirements.verdict import (
    Requirement,
    Text,
    Unit,
    at_least,
    exactly,
    matches,
)
from dynatok_online.requirements.words import spelled_with

# A row of dashes is a rule, and –5 is a number.
_BULLET = pattern(
    r"^[^\S\n]*(?:\*[^*\n]|-(?!(?:[^\S\n]*-){2,}[^\S\n]*$)|[•‣▪◦·・●○]|–[^\S\n]).*$", re.MULTILINE
)
_HIGHLIGHT = re.compile(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*")
_IN_TITLE = re.compile(r"[^\s<>]")
_QUOTES = {
    **{'"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«»", "‹": "›", "›": "‹›"},
    **{"「": "」", "『": "』", "〝": "〞〟", "＂": "＂"},
}
_CLOSING = frozenset("".join(_QUOTES.values()))
_LEADING = " \"“„”«»‹›「『〝‘‚'(（¿¡—–*_#"
_TRAILING = " \"“”«»‹›」』〞〟’‘')）*_"
_NOT_JSON = re.compile(r'"(?:\\.|[^"\\])*"|(NaN|-?Infinity)')
_FENCES = ("```json", "```Json", "```JSON", "```")


class _NoJson(Exception):
    """NaN and Infinity are Python's, not JSON's."""


def _not_json(name: str) -> NoReturn:
    raise _NoJson(name)


def _locate_json(text: Text) -> Iterator[Unit]:
    body = text.here.strip()
    at = text.start + len(text.here) - len(text.here.lstrip())
    for fence in _FENCES:
        if body.startswith(fence):
            body, at = body.removeprefix(fence), at + len(fence)
            break
    body = body.removesuffix("```")
    try:
        json.loads(body.strip(), parse_constant=_not_json, parse_int=str)
    except json.JSONDecodeError as error:
        blank = len(body) - len(body.lstrip())
        yield Unit(min(at + blank + error.pos, text.stop), text.stop, False)
    except RecursionError:
        yield Unit(text.start, text.stop, False)
    except _NoJson:
        place = next(m.start(1) for m in _NOT_JSON.finditer(body) if m[1])
        yield Unit(at + place, text.stop, False)
    else:
        yield Unit(text.start, text.stop, True)


def _locate_quotes(text: Text) -> Iterator[Unit]:
    body = text.here.strip()
    at = text.start + len(text.here) - len(text.here.lstrip())
    if body:
        end = at + len(body)
        closing = _QUOTES.get(body[0], _CLOSING)
        yield Unit(at, at + 1, body[0] in _QUOTES)
        yield Unit(end - 1, end, body[-1] in closing and len(body) > 1)


def _titles(text: Text) -> Iterator[tuple[int, int]]:
    for line in LINE.finditer(text.whole):
        start, stop = line.group().find("<<"), line.group().rfind(">>")
        if start >= 0 and _IN_TITLE.search(line.group()[start + 2 : max(stop, 0)]):
            place = line.start() + start, line.start() + stop + 2
            if text.holds(*place):
                yield place


JSON = Requirement("json", "envelope", "JSON", _locate_json)
QUOTED = Requirement("quoted", "envelope", 'in "quotes"', _locate_quotes)
HEADED = Requirement("headed", "format", "a <<title>>", at_least(_titles, 1))


def bullets(name: str, count: int) -> Requirement:
    """Exactly so many bullet points, * or - at the beginning of a line."""
    return Requirement(
        name,
        "format",
        f"{count} bullet points",
        exactly(matches(_BULLET), count),
        {"bullets": (count, count)},
    )


def min_highlights(name: str, count: int) -> Requirement:
    """At least so many *highlighted* parts."""
    return Requirement(
        name,
        "format",
        f"at least {count} *highlights*",
        at_least(matches(_HIGHLIGHT), count),
    )


def min_sections(name: str, count: int) -> Requirement:
    """At least so many sections, each begun by `Section 1`, `Section 2`, ..."""
    return Requirement(
        name,
        "format",
        f"at least {count} parts, Section 1 ...",
        at_least(matches(re.compile(r"Section\s?\d+")), count),
    )


def postscript(name: str, marker: str) -> Requirement:
    """A postscript that begins with this marker."""
    letters = [re.escape(part.strip()) for part in marker.lower().split(".") if part.strip()]
    source = r"(?<!\w)" + r"\.\s?".join(letters)
    source += r"\." if marker.endswith(".") else r"(?!\w)"
    return Requirement(
        name,
        "format",
        f"a postscript, {marker}",
        at_least(matches(re.compile(source, re.IGNORECASE)), 1),
    )


def starts_with(name: str, phrase: str) -> Requirement:
    """The text written under it begins with the phrase; quotes and ¿ ¡ * before it do not count."""
    wanted = fold(phrase)

    def locate(text: Text) -> Iterator[Unit]:
        body = folded(text.here)
        blank = len(body.text) - len(body.text.lstrip())
        bare = len(body.text) - len(body.text.lstrip(_LEADING))
        for at in (blank, bare):
            stop = at + len(wanted)
            if body.text.startswith(wanted, at) and body.whole(at, stop):
                first, last = body.span(at, stop)
                yield Unit(text.start + first, text.start + last, True)
                return
        start = text.stop - len(text.here.lstrip())
        yield Unit(start, min(start + len(phrase), text.stop), False)

    return Requirement(name, "start", f"begin: {phrase}", locate, spelled_with(phrase))


def ends_with(name: str, phrase: str) -> Requirement:
    """The text written under it ends with the phrase; quotes and * behind it do not count."""
    wanted = fold(phrase)

    def locate(text: Text) -> Iterator[Unit]:
        body = folded(text.here)
        for end in (len(body.text.rstrip()), len(body.text.rstrip(_TRAILING))):
            at = end - len(wanted)
            if at >= 0 and body.text.startswith(wanted, at) and body.whole(at, end):
                first, last = body.span(at, end)
                yield Unit(text.start + first, text.start + last, True)
                return
        stop = text.start + len(text.here.rstrip().rstrip('"'))
        yield Unit(max(stop - len(phrase), text.start), stop, False)

    return Requirement(name, "end", f"end: {phrase}", locate, spelled_with(phrase))
