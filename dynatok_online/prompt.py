"""A prompt with slots, rendered to token ids piece by piece.

A template is text with ``{{name}}`` placeholders for slots and at most one ``{{response}}`` for
the place of the response (default: the end). A slot after ``{{response}}`` stands *late*: after
the response so far, just before the next token.

Each piece (text or slot state) is tokenised alone, so an edit never moves a token boundary
outside its slot, and never changes a token that is not its own. Where positions must not move
either (sticky reuse), slots have a fixed width and shorter states are filled up with blanks.

One description serves both placements: `late` moves the lines that hold slots behind the
response, and `from_chat` writes chat messages as a template in either placement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np

from dynatok_online.trajectory import RESPONSE, TokenIds

Placement = Literal["head", "late"]
"""Where slots stand: in the prompt as written, or after the response so far."""

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


def late(prompt: Prompt) -> Prompt:
    """`prompt` with the lines that hold its slots behind the response, just before the next token.

    The lines from the first slot's to the last one's move as they are, after a line break; where
    no line break stands before the first slot (after the last), they begin (end) with the slot
    itself. A prompt without slots, or with one behind the response already, stays as it is.

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
        before[-1:] = _texts(text.text[:cut])
        rules[:0] = _texts(text.text[cut:])
    if after and isinstance(text := after[0], Text) and "\n" in text.text:
        cut = text.text.index("\n") + 1
        after[:1] = _texts(text.text[cut:])
        rules = [*_texts("\n"), *rules, *_texts(text.text[:cut])]
    return Prompt((*before, *after, Response(), *_joined(rules), *parts[place + 1 :]))


def _texts(text: str) -> list[Part]:
    return [Text(text)] if text else []


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts, with texts that follow each other made one."""
    out: list[Part] = []
    for part in parts:
        if out and isinstance(part, Text) and isinstance(out[-1], Text):
            out[-1] = Text(out[-1].text + part.text)
        else:
            out.append(part)
    return out


class ChatTemplate(Protocol):
    """What `from_chat` needs of a tokenizer: transformers' own method."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The text of a conversation."""
        ...


def from_chat(
    messages: Sequence[Mapping[str, str]],
    tokenizer: ChatTemplate,
    placement: Placement = "head",
    **kwargs: Any,
) -> str:
    """The template (see `parse`) of chat messages whose contents hold ``{{name}}`` placeholders.

    `head`: the messages, then the assistant's turn, which is the response. `late`: the lines that
    hold slots (see `late`) leave their message and become a turn of the same role behind the
    response so far; the assistant goes on after it. All slots must stand in one message then.
    `kwargs` go on to `tokenizer.apply_chat_template`.
    """

    def text(turns: Sequence[Mapping[str, str]]) -> str:
        kwargs.setdefault("add_generation_prompt", True)
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **kwargs))

    with_slots = [i for i, one in enumerate(messages) if parse(one["content"]).slots]
    if placement == "head" or not with_slots:
        template = text(messages) + "{{response}}"
    else:
        if len(with_slots) > 1:
            raise ValueError(
                f"slots stand in messages {with_slots}; late placement moves one turn: put all "
                "slots into one message"
            )
        role = messages[with_slots[0]]["role"]
        moved = late(parse(messages[with_slots[0]]["content"]))
        place = moved.parts.index(Response())
        stays = _written(moved.parts[:place]).strip()
        turns = [
            *messages[: with_slots[0]],
            *([{"role": role, "content": stays}] if stays else []),
            *messages[with_slots[0] + 1 :],
            {"role": "assistant", "content": "{{response}}"},
            {"role": role, "content": _written(moved.parts[place + 1 :]).strip()},
        ]
        template = text(turns)
    wanted = {name for one in messages for name in parse(one["content"]).slots}
    if set(parse(template).slots) != wanted or "{{response}}" not in template:
        raise ValueError(
            "the tokenizer's chat template drops or rewrites a placeholder; "
            f"wanted {sorted(wanted)} and the response, got {template!r}"
        )
    return template


def _written(parts: Sequence[Part]) -> str:
    """The template that `parse` reads as `parts`."""
    return "".join(
        part.text
        if isinstance(part, Text)
        else "{{" + (part.name if isinstance(part, Slot) else "response") + "}}"
        for part in parts
    )


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
    text, so returning to an earlier state costs a dictionary look-up. `widths` fixes how many
    tokens each slot takes; shorter states end in blanks, which say nothing to a model.
    """

    def __init__(
        self,
        prompt: Prompt,
        encode: Callable[[str], list[int]],
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.prompt = prompt
        self._encode = encode
        self._widths = dict(widths or {})
        self._index: dict[tuple[str, int | None], int] = {}
        self.pieces: list[TokenIds] = []
        """int32 token ids of each distinct piece, in order of first use."""

    def layout(self, states: Mapping[str, str]) -> tuple[int, ...]:
        """Indices into `pieces` of the prompt in `states`, with `RESPONSE` at its place.

        Raises ValueError where a slot has no state, a state has no slot, or a state is longer
        than its slot is wide.
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
            elif isinstance(part, Text):
                out.append(self._piece(part.text, None))
            else:
                out.append(self.state(part.name, states[part.name]))
        return tuple(out)

    def state(self, slot: str, text: str) -> int:
        """Index into `pieces` of a slot's state; ValueError where it is too long."""
        return self._piece(text, self._widths.get(slot), slot)

    def _piece(self, text: str, width: int | None, slot: str = "") -> int:
        index = self._index.get((text, width))
        if index is None:
            token_ids = self._encode(text)
            if width is not None:
                token_ids = self._filled(token_ids, width, slot, text)
            index = self._index[text, width] = len(self.pieces)
            self.pieces.append(np.asarray(token_ids, dtype=np.int32))
        return index

    def _filled(self, token_ids: list[int], width: int, slot: str, text: str) -> list[int]:
        if len(token_ids) > width:
            raise ValueError(
                f"slot {slot!r} is {width} tokens wide, but {text!r} has {len(token_ids)}; write "
                "a shorter text, or make the slot wider"
            )
        if len(token_ids) == width:
            return token_ids
        blank = self._encode(" ")
        if len(blank) != 1:
            raise ValueError(
                f"slot {slot!r}: the tokenizer writes a blank as {len(blank)} tokens, so states "
                f"cannot be filled up; write every state with {width} tokens"
            )
        return [*token_ids, *blank * (width - len(token_ids))]
