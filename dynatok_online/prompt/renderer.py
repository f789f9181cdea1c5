"""Renders one prompt in changing states, as token ids piece by piece.

Text between slots is one piece, each state of a slot another, so an edit never moves a token
outside its slot, and never changes a token that is not its own. The pieces are cut where the
tokenizer itself cuts (`borders`): joined they are the ids that it would give the whole text, in
any usual state. `Rule: {{s}}. Text` is cut into `Rule:`, ` upper`, `. Text`.

Where positions must not move either (sticky reuse), slots have a fixed width and shorter states
are filled up: `upper - - -`.

What a text ends in before the response is cut in the same way: blanks that the tokenizer writes
with the next word are left to the response, whose first token brings them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, Literal

import numpy as np

from dynatok_online.prompt.borders import ENDS, WINDOW, after_slot, before_slot
from dynatok_online.prompt.encoder import Encoder, after, before
from dynatok_online.prompt.template import Prompt, Response, Slot
from dynatok_online.trajectory import RESPONSE, TokenIds

BLANK: Final = " "
DASH: Final = " -"
"""What fills a slot: blanks where each is a token, dashes elsewhere. Of the fillings that were
tried on a real model they disturb it least; lone blanks are text that it never saw."""

Edge = Literal["start", "control", "response"]
"""What stands before a stretch of text and slots: nothing, a control token, the response."""


@dataclass
class _Stretch:
    """Texts and slots in turn, between control tokens, the response and the ends."""

    edge: Edge
    items: list[str | Slot] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """A slot where it stands."""

    slot: str
    left: str
    """Text that stays, just before what the slot takes."""
    edge: Edge | None
    """What else stands there; None behind such text, or behind another slot."""
    before: str
    """Text before the slot that belongs to it."""
    after: str
    right: str
    """Text that stays, just behind."""

    def own(self, text: str) -> str:
        """A state with the characters beside the slot that belong to it."""
        return self.before + text + self.after


_Fixed = tuple[str, list[int]]
"""Text that stays, and its ids."""


class Renderer:
    """The pieces of a prompt. `encode` is an `Encoder`, or what `Encoder.of` makes one of.

    `widths` fixes how many tokens slots take; ValueError for a state that does not fit.
    """

    def __init__(
        self,
        prompt: Prompt,
        encode: Encoder | Callable[[str], list[int]],
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.prompt = prompt
        self.encoder = Encoder.of(encode)
        self.widths = dict(widths or {})
        self.uncertain: list[str] = []
        """Borders where no cut suits every state: which, and how they are cut all the same."""
        self.pieces: list[TokenIds] = []
        """int32 token ids of each distinct piece, in order of first use."""
        self._index: dict[tuple[int, ...], int] = {}
        self._states: dict[tuple[_Place, str], int] = {}
        self._response = _Place("response", "", "start", "", "", "")
        self._cut_up: list[tuple[_Stretch, list[_Fixed | _Place]]] = []
        self._parts = self._cut(_stretches(prompt, self.encoder))
        self.slots: tuple[str | None, ...] = tuple(
            part.slot if isinstance(part, _Place) else None for part in self._parts
        )
        """What each entry of a layout is: a slot's name, or None."""

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
        for part in self._parts:
            if isinstance(part, _Place):
                out.append(self._state(part, states[part.slot]))
            else:
                out.append(RESPONSE if part is None else self._piece(part))
        return tuple(out)

    def check(self, slot: str, text: str) -> None:
        """ValueError where a state does not fit into its slot."""
        for part in self._parts:
            if isinstance(part, _Place) and part.slot == slot:
                self._state(part, text)

    def length(self, slot: str, text: str) -> int:
        """Tokens of a slot's state, not filled up."""
        places = [part for part in self._parts if isinstance(part, _Place) and part.slot == slot]
        return max(len(self._ids(place, text)) for place in places)

    def response_ids(self, texts: Sequence[str], control: bool = False) -> list[list[int]]:
        """The token ids of a response given in segments, as they follow the prompt.

        A blank that the tokenizer writes with the next word goes to the segment of that word.
        `control`: names of control tokens in it are meant.
        """
        if control and any(isinstance(i, int) for one in texts for i in self.encoder.split(one)):
            return self._with_control(texts)
        whole, cuts = self._response.before, []
        for text in texts:
            whole += text
            cuts.append(len(whole))
        for i, cut in enumerate(cuts[:-1]):
            cuts[i] = max(0, *cuts[:i], cut - _blanks(self.encoder, whole[:cut]))
        out: list[list[int]] = []
        start, done = 0, list[int]()
        for cut in cuts:
            ids = self._encoded(whole[:cut], self._response)
            added = after(ids, done)
            if added is None:  # the tokenizer joins the two, but an edit comes between them
                added = self.encoder.within(whole[start:cut], whole[:start][-WINDOW:])
            out.append(added)
            start, done = cut, [*done, *added]
        return out

    def _with_control(self, texts: Sequence[str]) -> list[list[int]]:
        out, last = list[list[int]](), ""
        for text in texts:
            out.append([])
            for piece in self.encoder.split(text):
                if isinstance(piece, int):
                    out[-1].append(piece)
                    last = ""
                elif last:
                    out[-1] += self.encoder.within(piece, last[-WINDOW:])
                    last += piece
                else:
                    first = not any(out)
                    out[-1] += (
                        self._encoded(self._response.before + piece, self._response)
                        if first
                        else self.encoder.behind(piece)
                    )
                    last = piece
        return out

    def differences(self, states: Mapping[str, str]) -> list[str]:
        """Borders where the pieces in these states are not the tokenizer's own of the whole text.

        Each names the texts on its two sides; the pieces are cut between them.
        """
        out = []
        for stretch, pieces in self._cut_up:
            texts, ids = list[str](), list[list[int]]()
            for piece in pieces:
                state = states[piece.slot] if isinstance(piece, _Place) else ""
                texts.append(piece.own(state) if isinstance(piece, _Place) else piece[0])
                ids.append(self._ids(piece, state) if isinstance(piece, _Place) else piece[1])
            mine = [i for one in ids for i in one]
            own = self._at_edge("".join(texts), stretch.edge)
            if mine != own:
                pairs = enumerate(zip(mine, own, strict=False))
                same = next((i for i, (a, b) in pairs if a != b), len(own))
                ends = list(accumulate(len(one) for one in ids))
                k = min(bisect_right(ends, same), max(0, len(ids) - 2))
                out.append(f"{texts[k][-16:]!r} | {''.join(texts[k + 1 : k + 2])[:16]!r}")
        return out

    # ---- cutting ----

    def _cut(self, stretches: Sequence[_Stretch | int | None]) -> list[list[int] | _Place | None]:
        """Ids that stay, slots, and None for the response."""
        out: list[list[int] | _Place | None] = []

        def add(ids: Sequence[int]) -> None:
            if ids:
                if out and isinstance(last := out[-1], list):
                    last += ids
                else:
                    out.append(list(ids))

        if not (stretches and isinstance(stretches[0], int)):
            add(self.encoder.first)
        for i, one in enumerate(stretches):
            if isinstance(one, int):
                add([one])
            elif one is None:
                out.append(None)
            else:
                pieces = self._cut_stretch(one, stretches[i + 1 : i + 2] == [None])
                self._cut_up.append((one, pieces))
                for piece in pieces:
                    if isinstance(piece, _Place):
                        out.append(piece)
                    else:
                        add(piece[1])
            if not isinstance(one, _Stretch) and stretches[i + 1 : i + 2] == [None]:
                self._response = _Place("response", "", "control", "", "", "")
        return out

    def _cut_stretch(self, stretch: _Stretch, before_response: bool) -> list[_Fixed | _Place]:
        encoder, items = self.encoder, stretch.items
        texts: dict[int, tuple[int, int]] = {}  # item -> characters that stay
        for i, item in enumerate(items):
            if isinstance(item, Slot):
                if i and isinstance(items[i - 1], Slot) and encoder.joins:
                    self._unsure("", items[i - 1], item)
                continue
            start, stop = 0, len(item)
            if i == 0 and stretch.edge == "response" and after_slot(encoder, item) != (0, True):
                self._unsure(item[:WINDOW], Slot("response"), None)
            if i > 0:
                border = after_slot(encoder, item)
                start = border.taken
                if not border.agrees:
                    self._unsure(item[:WINDOW], items[i - 1], None)
            if i + 1 < len(items):
                border = before_slot(encoder, item)
                stop = len(item) - border.taken
                if not border.agrees or stop < start:
                    self._unsure(item[-WINDOW:], None, items[i + 1])
                stop = max(start, stop)
            elif before_response:
                stop = max(start, len(item) - _blanks(encoder, item))
            texts[i] = (start, stop)

        def place(i: int, name: str) -> _Place:
            """What stands before and behind item `i`, which changes."""
            left = right = own_left = own_right = ""
            edge = stretch.edge if i == 0 else None
            if i > 0 and isinstance(text := items[i - 1], str):
                start, stop = texts[i - 1]
                left, own_left = text[start:stop][-WINDOW:], text[stop:]
                edge = stretch.edge if i == 1 and not stop else None
            if i + 1 < len(items) and isinstance(text := items[i + 1], str):
                start, stop = texts[i + 1]
                own_right, right = text[:start], text[start:stop][:WINDOW]
            return _Place(name, left, edge, own_left, own_right, right)

        if before_response:
            self._response = place(len(items), "response")
        out: list[_Fixed | _Place] = []
        for i, item in enumerate(items):
            if isinstance(item, Slot):
                out.append(place(i, item.name))
                continue
            start, stop = texts[i]
            stays = item[start:stop]
            if i == 0:
                out.append((stays, self._at_edge(stays, stretch.edge)))
            else:
                out.append((stays, encoder.within(stays, ENDS[0] + item[:start])))
        return out

    def _unsure(self, text: str, left: Any, right: Any) -> None:
        names = [f"{{{{{one.name}}}}}" for one in (left, right) if one is not None]
        if len(names) == 2:
            self.uncertain.append(f"{names[0]} and {names[1]} touch: cut between them")
        elif left is not None:
            what = "response" if left.name == "response" else "slot"
            self.uncertain.append(f"{names[0]} before {text[:12]!r}: cut where the {what} ends")
        else:
            self.uncertain.append(f"{text[-12:]!r} before {names[0]}: cut where the slot begins")

    def _at_edge(self, text: str, edge: Edge) -> list[int]:
        if edge == "start":
            return self.encoder(text)
        return self.encoder.behind(text) if edge == "control" else self.encoder.within(text)

    def _encoded(self, text: str, place: _Place) -> list[int]:
        """The ids of a text that stands at a place."""
        if place.edge is not None:
            return self._at_edge(text, place.edge)
        return self.encoder.within(text, place.left)

    # ---- pieces ----

    def _state(self, place: _Place, text: str) -> int:
        index = self._states.get((place, text))
        if index is None:
            ids = self._ids(place, text)
            width = self.widths.get(place.slot)
            if width is not None:
                ids = self._filled(place, text, ids, width)
            index = self._states[place, text] = self._piece(ids)
        return index

    def _ids(self, place: _Place, text: str) -> list[int]:
        """A state's tokens: of the whole text, those that are not its neighbours'."""
        own = place.own(text)
        if place.right and self.encoder.joins:
            end = self.encoder.within(place.right, ENDS[0] + place.after)
            found = before(self._encoded(own + place.right, place), end)
            if found is not None:
                return found
        return self._encoded(own, place)

    def _filled(self, place: _Place, text: str, ids: list[int], width: int) -> list[int]:
        """A state's tokens, filled up behind its own text."""
        missing = width - len(ids)
        if missing < 0:
            raise ValueError(
                f"slot {place.slot!r} is {width} tokens wide, but {text!r} has {len(ids)}; write "
                "a shorter text, or make the slot wider"
            )
        if missing == 0:
            return ids
        filling = BLANK if _lone_blanks(self.encoder) else DASH
        for count in (missing, missing + 1, missing - 1, missing + 2) if self.encoder.joins else ():
            found = self._ids(place, text + filling * count)
            if len(found) == width:
                return found
        # The tokenizer joins it with what stands around: tokens instead of text.
        cut = len(ids) - len(self.encoder.within(place.after, text or BLANK))
        return [*ids[:cut], *self.encoder.within(filling, "a")[-1:] * missing, *ids[cut:]]

    def _piece(self, ids: Sequence[int]) -> int:
        key = tuple(ids)
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.pieces)
            self.pieces.append(np.asarray(ids, dtype=np.int32))
        return index


def _lone_blanks(encoder: Encoder) -> bool:
    """Whether every blank is a token of its own, as where characters are tokens."""
    if not encoder.joins:
        return True
    if "lone blanks" not in encoder.memo:
        encoder.memo["lone blanks"] = len(set(encoder.within(BLANK * 5, "a"))) == 1 and (
            len(encoder.within("b" + BLANK * 5 + "c", "a")) == 7
        )
    return bool(encoder.memo["lone blanks"])


def _blanks(encoder: Encoder, text: str) -> int:
    """How many blanks at the end of `text` the tokenizer writes with what follows."""
    taken = before_slot(encoder, text).taken
    return taken if text.endswith(" " * taken) else 0


def _stretches(prompt: Prompt, encoder: Encoder) -> list[_Stretch | int | None]:
    """Stretches, control tokens by their ids, and None for the response."""
    out: list[_Stretch | int | None] = []

    def stretch() -> _Stretch:
        last = out[-1] if out else -1
        if not isinstance(last, _Stretch):
            edge: Edge = "start" if not out else "response" if last is None else "control"
            out.append(last := _Stretch(edge))
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
