"""The form of a text: lists, JSON, quotes, titles, highlights, sections, first and last words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from dynatok_online.requirements.core import (
    Requirement,
    Text,
    Unit,
    at_least,
    exactly,
    matches,
)
from dynatok_online.requirements.words import spelled_with

_BULLET = re.compile(r"^\s*(?:\*[^*\n]|-).*$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*")
_TITLE = re.compile(r"<<[^\n]*[^\s<>][^\n]*>>")
_FENCES = ("```json", "```Json", "```JSON", "```")


def _locate_json(text: Text) -> Iterator[Unit]:
    body = text.here.strip()
    at = text.start + len(text.here) - len(text.here.lstrip())
    for fence in _FENCES:
        if body.startswith(fence):
            body, at = body.removeprefix(fence), at + len(fence)
            break
    body = body.removesuffix("```")
    try:
        json.loads(body.strip())
    except json.JSONDecodeError as error:
        blank = len(body) - len(body.lstrip())
        yield Unit(min(at + blank + error.pos, text.stop), text.stop, False)
    else:
        yield Unit(text.start, text.stop, True)


def _locate_quotes(text: Text) -> Iterator[Unit]:
    body = text.here.strip()
    at = text.start + len(text.here) - len(text.here.lstrip())
    if body:
        end = at + len(body)
        yield Unit(at, at + 1, body[0] == '"')
        yield Unit(end - 1, end, body[-1] == '"' and len(body) > 1)


JSON = Requirement("json", "envelope", "JSON", _locate_json)
QUOTED = Requirement("quoted", "envelope", 'in "quotes"', _locate_quotes)
HEADED = Requirement("headed", "format", "a <<title>>", at_least(matches(_TITLE), 1))


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
    letters = [re.escape(part) for part in marker.lower().split(".") if part.strip()]
    pattern = r"\.\s?".join(part.strip() for part in letters)
    pattern += r"\." if marker.endswith(".") else ""
    return Requirement(
        name,
        "format",
        f"a postscript, {marker}",
        at_least(matches(re.compile(pattern, re.IGNORECASE)), 1),
    )


def starts_with(name: str, phrase: str) -> Requirement:
    """The text written under it begins with the phrase."""

    def locate(text: Text) -> Iterator[Unit]:
        body = text.here.lstrip()
        start = text.stop - len(body)
        ok = body.lower().startswith(phrase.lower())
        yield Unit(start, min(start + len(phrase), text.stop), ok)

    return Requirement(name, "start", f"begin: {phrase}", locate, spelled_with(phrase))


def ends_with(name: str, phrase: str) -> Requirement:
    """The text written under it ends with the phrase; quotes around the text do not count."""

    def locate(text: Text) -> Iterator[Unit]:
        body = text.here.rstrip().rstrip('"')
        stop = text.start + len(body)
        ok = body.lower().endswith(phrase.lower())
        yield Unit(max(stop - len(phrase), text.start), stop, ok)

    return Requirement(name, "end", f"end: {phrase}", locate, spelled_with(phrase))
