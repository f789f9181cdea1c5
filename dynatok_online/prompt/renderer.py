"""Renders one prompt in changing states, as token ids piece by piece.

Text between slots is one piece, each state of a slot another, so an edit never moves a token
outside its slot, and never changes a token that is not its own. The pieces are cut where the
tokenizer itself cuts (`cuts`): joined they are the ids that it would give the whole text, in
any usual state. `Rule: {{s}}. Text` is cut into `Rule:`, ` upper`, `. Text`.

Where positions must not move either (sticky reuse), slots have a fixed width and shorter states
are filled up: `upper - - -`.

What a text ends in before the response is cut in the same way: blanks that the tokenizer writes
with the next word are left to the response, whose first token brings them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Final

import numpy as np

from dynatok_online.prompt.borders import WINDOW
from dynatok_online.prompt.cuts import Fixed, Place, Stretch, at_edge, blanks, cut, stretches
from dynatok_online.prompt.encoder import Encoder, after
from dynatok_online.prompt.template import Prompt
from dynatok_online.trajectory import RESPONSE, TokenIds

BLANK: Final = " "
DASH: Final = " -"
"""What fills a slot: blanks where each is a token, dashes elsewhere. Of the fillings that were
tried on a real model they disturb it least; lone blanks are text that it never saw."""


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
        self._states: dict[tuple[Place, str], int] = {}
        self._response = Place("response", "start")
        self._cuts: list[tuple[Stretch, Sequence[Fixed | Place]]] = []
        self._parts = self._cut()
        self.slots: tuple[str | None, ...] = tuple(
            part.slot if isinstance(part, Place) else None for part in self._parts
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
            if isinstance(part, Place):
                out.append(self._state(part, states[part.slot]))
            else:
                out.append(RESPONSE if part is None else self._piece(part))
        return tuple(out)

    def check(self, slot: str, text: str) -> None:
        """ValueError where a state does not fit into its slot."""
        for part in self._parts:
            if isinstance(part, Place) and part.slot == slot:
                self._state(part, text)

    def length(self, slot: str, text: str) -> int:
        """Tokens of a slot's state, not filled up."""
        places = [part for part in self._parts if isinstance(part, Place) and part.slot == slot]
        return max(len(place.ids(self.encoder, text)) for place in places)

    def response_ids(self, texts: Sequence[str], control: bool = False) -> list[list[int]]:
        """The token ids of a response given in segments, as they follow the prompt.

        A blank that the tokenizer writes with the next word goes to the segment of that word.
        `control`: names of control tokens in it are meant.
        """
        if control and any(isinstance(i, int) for one in texts for i in self.encoder.split(one)):
            return self._with_control(texts)
        whole, ends = self._response.before, list[int]()
        for text in texts:
            whole += text
            ends.append(len(whole))
        for i, end in enumerate(ends[:-1]):
            ends[i] = max(0, *ends[:i], end - blanks(self.encoder, whole[:end]))
        out: list[list[int]] = []
        start, done = 0, list[int]()
        for end in ends:
            ids = self._response.encode(self.encoder, whole[:end])
            added = after(ids, done)
            if added is None:  # the tokenizer joins the two, but an edit comes between them
                added = self.encoder.within(whole[start:end], whole[:start][-WINDOW:])
            out.append(added)
            start, done = end, [*done, *added]
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
                        self._response.encode(self.encoder, self._response.before + piece)
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
        for stretch, pieces in self._cuts:
            texts, ids = list[str](), list[list[int]]()
            for piece in pieces:
                if isinstance(piece, Place):
                    texts.append(piece.own(states[piece.slot]))
                    ids.append(piece.ids(self.encoder, states[piece.slot]))
                else:
                    texts.append(piece.text)
                    ids.append(piece.ids)
            mine = [i for one in ids for i in one]
            own = at_edge(self.encoder, "".join(texts), stretch.edge)
            if mine != own:
                pairs = enumerate(zip(mine, own, strict=False))
                same = next((i for i, (a, b) in pairs if a != b), len(own))
                ends = list(accumulate(len(one) for one in ids))
                k = min(bisect_right(ends, same), max(0, len(ids) - 2))
                out.append(f"{texts[k][-16:]!r} | {''.join(texts[k + 1 : k + 2])[:16]!r}")
        return out

    def _cut(self) -> list[list[int] | Place | None]:
        """Ids that stay, slots, and None for the response."""
        out: list[list[int] | Place | None] = []

        def add(ids: Sequence[int]) -> None:
            if ids:
                if out and isinstance(last := out[-1], list):
                    last += ids
                else:
                    out.append(list(ids))

        found = stretches(self.prompt, self.encoder)
        if not (found and isinstance(found[0], int)):
            add(self.encoder.first)
        for one, following in zip(found, [*found[1:], -1], strict=True):
            ends = Place("response", "control")
            if isinstance(one, int):
                add([one])
            elif one is None:
                out.append(None)
            else:
                pieces, ends, uncertain = cut(one, self.encoder, following is None)
                self._cuts.append((one, pieces))
                self.uncertain += uncertain
                for piece in pieces:
                    if isinstance(piece, Place):
                        out.append(piece)
                    else:
                        add(piece.ids)
            if following is None:
                self._response = ends
        return out

    def _state(self, place: Place, text: str) -> int:
        index = self._states.get((place, text))
        if index is None:
            ids = place.ids(self.encoder, text)
            width = self.widths.get(place.slot)
            if width is not None:
                ids = self._filled(place, text, ids, width)
            index = self._states[place, text] = self._piece(ids)
        return index

    def _filled(self, place: Place, text: str, ids: list[int], width: int) -> list[int]:
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
            found = place.ids(self.encoder, text + filling * count)
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
