"""Where text that stays is cut from text that changes, so that the tokenizer would cut there too.

A tokenizer joins characters across the border of a slot: it writes the blank before a word as part
of the word, and a full stop with the line break after it. Such characters belong to the slot. How
many they are is asked of the tokenizer itself: the border moves away from the slot until, whatever
of a set of usual states stands in the slot, the tokens outside are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dynatok_online.prompt.encoder import Encoder, after

BEGINNINGS: Final = ("upper", "Two", "CASE", "12", "(a", '"A', "é", "中", "- a")
"""How a slot's text may begin."""
ENDS: Final = ("upper", "TWO", "12", "a.", "a)", 'a"', "é", "中", "a ")
"""How it may end."""
WINDOW: Final = 48
"""Characters of the text beside a slot that are looked at."""
REMEMBERED: Final = 20_000
"""Borders of one tokenizer that are kept in memory."""
REACH: Final = 16
"""Most characters of it that go to the slot."""


class Border(NamedTuple):
    """A border between text and a slot."""

    taken: int
    """Characters of the text that belong to the slot."""
    agrees: bool
    """Whether the tokens of the text are then the tokenizer's own, whatever stands in the slot."""


def before_slot(encoder: Encoder, text: str) -> Border:
    """The border between `text` and what follows it."""
    if not encoder.joins:
        return Border(0, True)
    return _remembered(encoder, _before_slot, text[-WINDOW:])


def after_slot(encoder: Encoder, text: str) -> Border:
    """The border between a slot and `text`, which follows it."""
    if not encoder.joins:
        return Border(0, True)
    return _remembered(encoder, _after_slot, text[:WINDOW])


def _remembered(encoder: Encoder, find: Callable[[Encoder, str], Border], text: str) -> Border:
    found: Border | None = encoder.memo.get((find, text))
    if found is None:
        if len(encoder.memo) >= REMEMBERED:
            encoder.memo.clear()
        found = encoder.memo[find, text] = find(encoder, text)
    return found


def _before_slot(encoder: Encoder, text: str) -> Border:
    whole = [encoder(text + one) for one in BEGINNINGS]
    for taken in range(min(len(text), REACH) + 1):
        stays = encoder(text[: len(text) - taken])
        if all(after(ids, stays) is not None for ids in whole):
            return Border(taken, True)
    return Border(0, False)


def _after_slot(encoder: Encoder, text: str) -> Border:
    for taken in range(min(len(text), REACH) + 1):
        rests = [after(encoder(one + text), encoder(one + text[:taken])) for one in ENDS]
        if rests[0] is not None and all(rest == rests[0] for rest in rests):
            return Border(taken, True)
    return Border(0, False)
