"""Chat messages with slots, written as one template by a model's own chat template.

The chat template sees marks from a private range of Unicode where slots, braces and names of
control tokens stand in the messages: whatever it writes by itself is its own, and the messages
stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from dynatok_online.prompt.control import control_tokens
from dynatok_online.prompt.template import (
    Part,
    Placement,
    Response,
    Slot,
    Text,
    late,
    parse,
    written,
)

_MARK: Final = re.compile("\ue000([0-9]+)\ue001")
Message = Mapping[str, str]


class ChatTemplate(Protocol):
    """What `from_chat` needs of a tokenizer: transformers' own method."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The text of a conversation."""
        ...


def from_chat(
    messages: Sequence[Message],
    tokenizer: ChatTemplate,
    placement: Placement = "head",
    *,
    control: bool = False,
    system: str = "",
    **kwargs: Any,
) -> str:
    """The template of chat messages whose contents hold ``{{name}}`` places (see `parse`).

    Parse it with `control=True`: control tokens are what the chat template writes. In the messages
    their names are text, unless `control` says that they are meant.

    `head`: the messages, then the assistant's turn, which is the response. `late`: the lines that
    hold slots (see `late`) leave their message and become a turn of the same role behind the
    response so far; the assistant goes on after it. All slots must stand in one message then.
    `system` opens a conversation that has no system message. `kwargs` go on to
    `tokenizer.apply_chat_template` (`enable_thinking`, `tools`, ...).
    """
    if system and not any(one.get("role") == "system" for one in messages):
        messages = [{"role": "system", "content": system}, *messages]
    turns: list[tuple[Message, Sequence[Part]]] = [(one, _parts(one)) for one in messages]
    wanted = {name for _, parts in turns for name in _names(parts)}
    with_slots = [i for i, (_, parts) in enumerate(turns) if _names(parts)]
    ending: list[Part] = [Response()]
    if placement == "late" and with_slots:
        if len(with_slots) > 1:
            raise ValueError(
                f"slots stand in messages {with_slots}; late placement moves one turn: put all "
                "slots into one message"
            )
        at, ending = with_slots[0], []
        turn, parts = turns[at]
        moved = late(parse(written(parts))).parts
        place = moved.index(Response())
        stays = _stripped(moved[:place])
        turns[at : at + 1] = [(turn, stays)] if stays else []
        turns += [({"role": "assistant"}, [Response()]), (turn, _stripped(moved[place + 1 :]))]
    marks = _Marks(() if control else control_tokens(tokenizer))
    written_turns = [{**turn, "content": marks.write(parts)} for turn, parts in turns]
    options = {"add_generation_prompt": True} | kwargs | {"tokenize": False}
    try:
        text = str(tokenizer.apply_chat_template(written_turns, **options))
    except Exception as error:  # Jinja's, or whatever else a template raises
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error
    found = [*marks.read(text), *ending]
    if set(_names(found)) != wanted or Response() not in found:
        raise ValueError(
            "the tokenizer's chat template drops or rewrites a placeholder; "
            f"wanted {sorted(wanted)} and the response, got {written(found)!r}"
        )
    return written(found)


def chat_of(
    tokenizer: Any,
    model: str,
    placement: Placement = "head",
    system: str = "",
    options: Mapping[str, Any] | None = None,
) -> Callable[..., str]:
    """`from_chat` of one model, with a system prompt and options of its chat template.

    ValueError for a model without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"there are chat messages, but model {model!r} has no chat template; write 'prompt' "
            "instead of 'messages', or take an instruction-tuned model"
        )
    return partial(
        from_chat, tokenizer=tokenizer, placement=placement, system=system, **(options or {})
    )


class _Marks:
    """Stand for parts that a chat template must carry along unseen."""

    def __init__(self, names: Any) -> None:
        found = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
        self._unsafe = re.compile("([\ue000\ue001]" + (f"|{found}" if found else "") + ")")
        self._parts: list[Part] = []

    def write(self, parts: Sequence[Part]) -> str:
        out = []
        for part in parts:
            if isinstance(part, Text):
                for i, piece in enumerate(self._unsafe.split(part.text)):
                    out.append(self._mark(Text(piece)) if i % 2 else piece)
            else:
                out.append(self._mark(part))
        return "".join(out)

    def read(self, text: str) -> list[Part]:
        out: list[Part] = []
        for i, piece in enumerate(_MARK.split(text)):
            if i % 2:
                out.append(self._parts[int(piece)])
            elif piece:
                out.append(Text(piece, control=True))
        return out

    def _mark(self, part: Part) -> str:
        self._parts.append(part)
        return f"\ue000{len(self._parts) - 1}\ue001"


def _parts(message: Message) -> Sequence[Part]:
    """What a message holds. ValueError for a content that is no text."""
    content: Any = message.get("content")
    if not isinstance(content, str):
        raise ValueError(
            f"a message's content must be a text, but the {message.get('role')} message holds "
            f"{type(content).__name__}"
        )
    parts = parse(content).parts
    if Response() in parts[:-1]:
        raise ValueError("{{response}} in a chat message: the response is the assistant's turn")
    return parts[:-1]


def _names(parts: Sequence[Part]) -> list[str]:
    return [part.name for part in parts if isinstance(part, Slot)]


def _stripped(parts: Sequence[Part]) -> list[Part]:
    """The parts without blanks at either end."""
    out = list(parts)
    while out and isinstance(first := out[0], Text):
        out[:1] = [Text(text)] if (text := first.text.lstrip()) else []
        if text:
            break
    while out and isinstance(last := out[-1], Text):
        out[-1:] = [Text(text)] if (text := last.text.rstrip()) else []
        if text:
            break
    return out
