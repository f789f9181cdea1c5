"""Templates: text with places for slots, and one for the response.

    {{name}}         a slot
    {{response}}     the place of the response (default: the end)
    {{"any text"}}   this text as it stands, a JSON string: braces, and what looks like a place

A slot after ``{{response}}`` stands *late*: after the response so far, just before the next token.
One description serves both placements: `late` moves the lines that hold slots behind the response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import msgspec

Placement = Literal["head", "late"]
"""Where slots stand: in the prompt as written, or after the response so far."""

_PLACE: Final = re.compile(r'\{\{\s*(?:([A-Za-z_][A-Za-z0-9_]*)|("(?:[^"\\]|\\.)*"))\s*\}\}')
# In a literal these are written as escapes, so that no chat template sees a marker in it.
_HIDDEN: Final = str.maketrans({one: f"\\u{ord(one):04x}" for one in "{}<>[]|"})


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A part that never changes."""

    text: str
    control: bool = False
    """Whether the names of control tokens in it (`<|im_end|>`) are control tokens."""


class Slot(msgspec.Struct, frozen=True, tag="slot"):
    """A part whose text may change during generation."""

    name: str


class Response(msgspec.Struct, frozen=True, tag="response"):
    """The place of the response."""


Part = Text | Slot | Response


class Prompt(msgspec.Struct, frozen=True):
    """Ordered parts: text, slots, and the place of the response (exactly once)."""

    parts: tuple[Part, ...]

    @property
    def slots(self) -> tuple[str, ...]:
        """Slot names, each once, in the order in which they first stand in the prompt."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Slot)))


@lru_cache(maxsize=4096)
def parse(template: str, control: bool = False) -> Prompt:
    """The prompt that a template describes.

    `control`: names of control tokens in the template's own text, literals excepted, are control
    tokens. Raises ValueError for a second ``{{response}}``, or for braces that are no place.
    """
    parts: list[Part] = []
    at = 0
    for match in _PLACE.finditer(template):
        parts += _plain(template, at, match.start(), control)
        if match[2] is not None:
            parts += _texts(_literal_text(match))
        else:
            parts.append(Response() if match[1] == "response" else Slot(match[1]))
        at = match.end()
    parts += _plain(template, at, len(template), control)
    places = sum(isinstance(part, Response) for part in parts)
    if places > 1:
        raise ValueError(f"the template has {places} {{{{response}}}} places; write one at most")
    return Prompt((*_joined(parts), Response()) if places == 0 else tuple(_joined(parts)))


def literal(text: str) -> str:
    """`text` as a template writes it where it must be taken as it stands."""
    return '{{"' + json.dumps(text, ensure_ascii=False)[1:-1].translate(_HIDDEN) + '"}}'


def escaped(text: str) -> str:
    """`text` as a part of a template that means this text: double braces become literals."""
    return re.sub(r"\{{2,}|\}{2,}|^[{}]|[{}]$", lambda match: literal(match[0]), text)


def written(parts: Sequence[Part]) -> str:
    """The template that `parse` reads as these parts."""
    control = any(part.control for part in parts if isinstance(part, Text))
    out = []
    for part in parts:
        if isinstance(part, Text):
            out.append(literal(part.text) if control and not part.control else escaped(part.text))
        else:
            out.append("{{" + (part.name if isinstance(part, Slot) else "response") + "}}")
    return "".join(out)


def late(prompt: Prompt) -> Prompt:
    """`prompt` with the lines that hold its slots behind the response, just before the next token.

    The lines from the first slot's to the last one's move as they are, after a line break; where
    no line break stands before the first slot (after the last), they begin (end) with the slot
    itself, unless it stands in the first of several lines. A prompt without slots, or with one
    behind the response already, stays as it is.

        "Rules:\\nstyle: {{s}}\\nText:\\n{{response}}"
        "Rules:\\nText:\\n{{response}}\\nstyle: {{s}}\\n"
    """
    parts = prompt.parts
    place = parts.index(Response())
    slots = [i for i, part in enumerate(parts) if isinstance(part, Slot)]
    if not slots or slots[-1] > place:
        return prompt
    first, last = slots[0], slots[-1] + 1
    before, rules, after = list(parts[:first]), list(parts[first:last]), list(parts[last:place])
    if before and isinstance(text := before[-1], Text) and "\n" in text.text:
        cut = text.text.rindex("\n") + 1
        before[-1:] = _texts(text.text[:cut], text.control)
        rules[:0] = _texts(text.text[cut:], text.control)
    elif after and isinstance(text := after[0], Text) and "\n" in text.text:
        before, rules = [], [*before, *rules]  # its line begins where the prompt does
    if after and isinstance(text := after[0], Text) and "\n" in text.text:
        cut = text.text.index("\n") + 1
        after[:1] = _texts(text.text[cut:], text.control)
        rules = [*_texts("\n"), *rules, *_texts(text.text[:cut], text.control)]
    return Prompt((*_joined([*before, *after]), Response(), *_joined(rules), *parts[place + 1 :]))


def _plain(template: str, start: int, stop: int, control: bool) -> list[Part]:
    text = template[start:stop]
    for mark in ("{{", "}}"):
        if mark in text:
            raise ValueError(
                f"'{mark}' at character {start + text.index(mark)} of the template is not part of "
                "a placeholder; write {{name}} with letters, digits and underscores, or "
                f'{{{{"{mark}"}}}} for the braces themselves'
            )
    return _texts(text, control)


def _literal_text(match: re.Match[str]) -> str:
    try:
        return str(json.loads(match[2], strict=False))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{match[0]!r} at character {match.start()} of the template is no JSON string "
            f"({error.msg}); write backslashes twice"
        ) from None


def _texts(text: str, control: bool = False) -> list[Part]:
    return [Text(text, control)] if text else []


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts, with texts of one kind that follow each other made one."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Text) and isinstance(last, Text) and part.control == last.control:
            out[-1] = Text(last.text + part.text, part.control)
        else:
            out.append(part)
    return out
