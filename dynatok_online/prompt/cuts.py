"""A prompt cut into what stays and what changes, before any state is known.

*Stretches* of text and slots lie between control tokens, the response and the ends of the prompt:
no tokenizer joins anything across those. Inside a stretch, `borders` says how much of a text goes
to the slot beside it; a `Place` is a slot with these characters and with the text around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dynatok_online.prompt.borders import ENDS, WINDOW, after_slot, before_slot
from dynatok_online.prompt.encoder import Encoder, before
from dynatok_online.prompt.template import Prompt, Response, Slot

Edge = Literal["start", "control", "response"]
"""What stands before a stretch: nothing, a control token, the response."""


@dataclass
class Stretch:
    """Texts and slots in turn."""

    edge: Edge
    items: list[str | Slot] = field(default_factory=list)


class Fixed(NamedTuple):
    """Text that stays, and its ids."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Place:
    """A slot (or the response) where it stands."""

    slot: str
    edge: Edge | None
    """What stands just before what the slot takes; None for text or another slot."""
    left: str = ""
    """Text that stays, just before."""
    before: str = ""
    """Text before the slot that belongs to it."""
    after: str = ""
    """Text behind the slot that belongs to it."""
    right: str = ""
    """Text that stays, just behind."""

    def own(self, text: str) -> str:
        """A state with the characters beside the slot that belong to it."""
        return self.before + text + self.after

    def encode(self, encoder: Encoder, text: str) -> list[int]:
        """The ids of a text that stands here."""
        if self.edge is not None:
            return at_edge(encoder, text, self.edge)
        return encoder.within(text, self.left)

    def ids(self, encoder: Encoder, text: str) -> list[int]:
        """A state's ids: of the whole text, those that are not its neighbours'."""
        own = self.own(text)
        if self.right and encoder.joins:
            end = encoder.within(self.right, ENDS[0] + self.after)
            found = before(self.encode(encoder, own + self.right), end)
            if found is not None:
                return found
        return self.encode(encoder, own)


class Cut(NamedTuple):
    """A stretch, cut."""

    pieces: list[Fixed | Place]
    response: Place
    """What stands where the stretch ends: the response, if it comes next."""
    uncertain: list[str]
    """Borders where no cut suits every state: which, and how they are cut all the same."""


def at_edge(encoder: Encoder, text: str, edge: Edge) -> list[int]:
    """The ids of a text that begins a stretch."""
    if edge == "start":
        return encoder(text)
    return encoder.behind(text) if edge == "control" else encoder.within(text)


def blanks(encoder: Encoder, text: str) -> int:
    """How many blanks at the end of `text` the tokenizer writes with what follows."""
    taken = before_slot(encoder, text).taken
    return taken if text.endswith(" " * taken) else 0


def stretches(prompt: Prompt, encoder: Encoder) -> list[Stretch | int | None]:
    """Stretches, control tokens by their ids, and None for the response."""
    out: list[Stretch | int | None] = []

    def stretch() -> Stretch:
        last = out[-1] if out else -1
        if not isinstance(last, Stretch):
            edge: Edge = "start" if not out else "response" if last is None else "control"
            out.append(last := Stretch(edge))
        return last

    for part in prompt.parts:
        if isinstance(part, Response):
            out.append(None)
        elif isinstance(part, Slot):
            stretch().items.append(part)
        else:
            for piece in encoder.split(part.text) if part.control else [part.text]:
                if isinstance(piece, int):
                    out.append(piece)
                    continue
                items = stretch().items
                if items and isinstance(last := items[-1], str):
                    items[-1] = last + piece
                else:
                    items.append(piece)
    return out


def cut(stretch: Stretch, encoder: Encoder, before_response: bool) -> Cut:
    """Cut a stretch; `before_response`: the response comes next."""
    items = stretch.items
    stays, uncertain = _stays(stretch, encoder, before_response)

    def place(i: int, name: str) -> Place:
        """What stands before and behind item `i`, which changes."""
        left = right = own_left = own_right = ""
        edge = stretch.edge if i == 0 else None
        if i > 0 and isinstance(text := items[i - 1], str):
            start, stop = stays[i - 1]
            left, own_left = text[start:stop][-WINDOW:], text[stop:]
            edge = stretch.edge if i == 1 and not stop else None
        if i + 1 < len(items) and isinstance(text := items[i + 1], str):
            start, stop = stays[i + 1]
            own_right, right = text[:start], text[start:stop][:WINDOW]
        return Place(name, edge, left, own_left, own_right, right)

    pieces: list[Fixed | Place] = []
    for i, item in enumerate(items):
        if isinstance(item, Slot):
            pieces.append(place(i, item.name))
            continue
        start, stop = stays[i]
        text = item[start:stop]
        if i == 0:
            pieces.append(Fixed(text, at_edge(encoder, text, stretch.edge)))
        else:
            pieces.append(Fixed(text, encoder.within(text, ENDS[0] + item[:start])))
    return Cut(pieces, place(len(items), "response"), uncertain)


def _stays(
    stretch: Stretch, encoder: Encoder, before_response: bool
) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """Of each text, by its number, the characters that stay; and the borders that are uncertain."""
    items = stretch.items
    stays: dict[int, tuple[int, int]] = {}
    notes: list[str] = []
    for i, item in enumerate(items):
        beside = _names(items, i)
        if isinstance(item, Slot):
            if i and isinstance(items[i - 1], Slot) and encoder.joins:
                notes.append(f"{beside[0]} and {{{{{item.name}}}}} touch: cut between them")
            continue
        start, stop = 0, len(item)
        if i == 0 and stretch.edge == "response" and after_slot(encoder, item) != (0, True):
            notes.append(f"{{{{response}}}} before {item[:12]!r}: cut where the response ends")
        if i > 0:
            border = after_slot(encoder, item)
            start = border.taken
            if not border.agrees:
                notes.append(f"{beside[0]} before {item[:12]!r}: cut where the slot ends")
        if i + 1 < len(items):
            border = before_slot(encoder, item)
            stop = len(item) - border.taken
            if stop < start and not item[stop:start].strip(" "):
                start = stop  # blanks are written with the word that follows them
            if not border.agrees or stop < start:
                notes.append(f"{item[-12:]!r} before {beside[1]}: cut where the slot begins")
            stop = max(start, stop)
        elif before_response:
            stop = max(start, len(item) - blanks(encoder, item))
        stays[i] = (start, stop)
    return stays, notes


def _names(items: Sequence[str | Slot], i: int) -> tuple[str, str]:
    """The slots before and behind item `i`, as a template writes them."""
    found = [items[k] if 0 <= k < len(items) else "" for k in (i - 1, i + 1)]
    left, right = (f"{{{{{one.name}}}}}" if isinstance(one, Slot) else "" for one in found)
    return left, right
