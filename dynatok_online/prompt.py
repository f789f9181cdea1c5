"""A prompt with slots, rendered to token ids piece by piece.

A template is text with ``{{name}}`` placeholders for slots and at most one ``{{response}}`` for
the place of the response (default: the end). A slot after ``{{response}}`` stands *late*: after
the response so far, just before the next token.

Each piece (text or slot state) is tokenised alone, so an edit never moves a token boundary
outside its slot, and never changes a token that is not its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from dynatok_online.trajectory import RESPONSE, TokenIds

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A part that never changes."""

    text: str


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


def parse(template: str) -> Prompt:
    """The prompt that a template describes.

    Raises ValueError for a second ``{{response}}``, or for braces that are no placeholder.
    """
    parts: list[Part] = []
    at = 0
    for match in _PLACEHOLDER.finditer(template):
        _add_text(parts, template, at, match.start())
        name = match[1]
        parts.append(Response() if name == "response" else Slot(name))
        at = match.end()
    _add_text(parts, template, at, len(template))
    places = sum(isinstance(part, Response) for part in parts)
    if places > 1:
        raise ValueError(f"the template has {places} {{{{response}}}} places; write one at most")
    return Prompt((*parts, Response()) if places == 0 else tuple(parts))


def _add_text(parts: list[Part], template: str, start: int, stop: int) -> None:
    text = template[start:stop]
    for mark in ("{{", "}}"):
        if mark in text:
            raise ValueError(
                f"'{mark}' at character {start + text.index(mark)} of the template is not part of "
                "a placeholder; write {{name}} with letters, digits and underscores"
            )
    if text:
        parts.append(Text(text))


class Renderer:
    """Renders one prompt in changing states, and keeps the table of pieces that it used.

    `encode` turns text into token ids *without* special tokens; it is called once per distinct
    text, so returning to an earlier state costs a dictionary look-up.
    """

    def __init__(self, prompt: Prompt, encode: Callable[[str], list[int]]) -> None:
        self.prompt = prompt
        self._encode = encode
        self._index: dict[str, int] = {}
        self.pieces: list[TokenIds] = []
        """int32 token ids of each distinct piece, in order of first use."""

    def layout(self, states: Mapping[str, str]) -> tuple[int, ...]:
        """Indices into `pieces` of the prompt in `states`, with `RESPONSE` at its place.

        Raises ValueError where a slot has no state, or a state has no slot.
        """
        missing = [name for name in self.prompt.slots if name not in states]
        extra = [name for name in states if name not in self.prompt.slots]
        if missing or extra:
            what = f"no state for slot {missing}" if missing else f"no slot for state {extra}"
            raise ValueError(f"{what}; the prompt's slots are {list(self.prompt.slots)}")
        out = []
        for part in self.prompt.parts:
            if isinstance(part, Response):
                out.append(RESPONSE)
            else:
                out.append(self._piece(part.text if isinstance(part, Text) else states[part.name]))
        return tuple(out)

    def _piece(self, text: str) -> int:
        index = self._index.get(text)
        if index is None:
            index = self._index[text] = len(self.pieces)
            self.pieces.append(np.asarray(self._encode(text), dtype=np.int32))
        return index
