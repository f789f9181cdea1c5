"""Guesses of what comes next, from all texts that the engine has seen (`drafts.method: seen`).

Runs in vLLM's worker as its proposer (`custom_class`). After each step it sees rows of tokens,
their prompts included: no names of requests, no logits. Where a row's last three tokens stood
before, in its own text or in another, the longest match is followed for as long as it is right.
So what a session wrote before it started over is found, what a lane beside it writes, and what a
text says again.

A guess costs its check, right or wrong. Each row therefore has an estimate of how often the next
token is the one that it would guess, kept up whether or not it does guess: nothing is guessed where
that is low, nor where few of many rows guess, since a step with guesses costs all of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]
Gram = tuple[int, int, int]
Text = list[int]
Place = tuple[Text, int]
"""A text, and where in it the token behind a match stands."""

GRAM = 3
ROOM = 500_000
"""Tokens of one generation of texts; those of the one before it are remembered, too."""
PLACES = 8
"""So many places of three tokens are remembered."""
LONGEST = 64
"""Matches are compared up to so many tokens."""
FIRST = 0.75
"""Estimate of a row that is new."""
LEAST = 0.5
"""A row whose estimate is lower guesses nothing."""
SURE = 0.3
"""The last token of a guess is expected to be right so often."""
SHARE = 0.1
"""Nothing is guessed where fewer tokens than this share of the rows are expected to be right."""


class _Row:
    """A text that is being written."""

    __slots__ = ("follows", "rate", "text")

    def __init__(self, text: Text) -> None:
        self.text = text
        self.follows: Place | None = None
        self.rate = FIRST


class SeenTexts:
    """vLLM's proposer, made with the engine's `VllmConfig`."""

    def __init__(self, config: Any) -> None:
        self.most = int(config.speculative_config.num_speculative_tokens)
        self._rows: dict[tuple[int, ...], list[_Row]] = {}
        """Rows of the last step by their length and last tokens: they have no other name."""
        self._places: dict[Gram, list[Place]] = {}
        self._older: dict[Gram, list[Place]] = {}
        self._tokens = 0

    def load_model(self, *_: Any, **__: Any) -> None:
        """vLLM asks for it; there is none."""

    def propose(
        self, sampled: list[list[int]], lengths: Ids, tokens: Ids, **_: Any
    ) -> list[list[int]]:
        """Guesses of each row, `most` tokens or fewer.

        `sampled` are the tokens that the last step gave each row; `tokens` [B, L] are the rows,
        those included, of which the first `lengths` [B] count.
        """
        before, self._rows = self._rows, {}
        guesses: list[list[int]] = []
        expected = 0.0
        for i, new in enumerate(sampled):
            guess: list[int] = []
            if new:
                row = self._row(before, new, tokens[i], int(lengths[i]))
                if row.follows is not None and row.rate >= LEAST:
                    text, at = row.follows
                    far = math.log(SURE) / math.log(min(row.rate, 0.99))
                    guess = text[at : at + min(self.most, int(far))]
                    expected += sum(row.rate**j for j in range(1, len(guess) + 1))
            guesses.append(guess)
        if expected < SHARE * len(sampled):
            return [[] for _ in sampled]
        return guesses

    def _row(
        self, before: dict[tuple[int, ...], list[_Row]], new: list[int], tokens: Ids, length: int
    ) -> _Row:
        """The row that has got these tokens, found again, or begun."""
        old = length - len(new)
        known = before.get((old, *tokens[max(0, old - 4) : old].tolist()))
        if known:
            row = known.pop()
            self._check(row, new)
            row.text += new
        else:
            row, old = _Row(tokens[:length].tolist()), 0
        self._learn(row.text, old)
        if row.follows is None:
            row.follows = self._longest(row.text)
        self._rows.setdefault((length, *row.text[-4:]), []).append(row)
        return row

    def _check(self, row: _Row, new: list[int]) -> None:
        """Of what the row follows, was it right?"""
        if row.follows is None:
            row.rate -= row.rate / 16  # nothing to guess is no good sign either
            return
        text, at = row.follows
        for token in new:
            right = at < len(text) and text[at] == token
            row.rate += (right - row.rate) / 8
            if not right:
                row.follows = None
                return
            at += 1
        row.follows = (text, at) if at < len(text) else None

    def _learn(self, text: Text, old: int) -> None:
        """Remember where the tokens of `text` from `old` on stand."""
        places = self._places
        for at in range(max(GRAM, old), len(text)):
            gram = (text[at - 3], text[at - 2], text[at - 1])
            found = places.get(gram)
            if found is None:
                places[gram] = [(text, at)]
            else:
                found.append((text, at))
                if len(found) > PLACES:
                    del found[0]
        self._tokens += len(text) - old
        if self._tokens > ROOM:
            self._older, self._places, self._tokens = places, {}, 0

    def _longest(self, text: Text) -> Place | None:
        """Behind the longest match of the end of `text`; of equal ones the one in the text that
        begins most like it, then the latest."""
        if len(text) < GRAM:
            return None
        gram = (text[-3], text[-2], text[-1])
        best, key = None, (0, 0)
        for place in reversed(self._older.get(gram, []) + self._places.get(gram, [])):
            other, at = place
            if at >= len(other):
                continue
            length = _common(text, len(text) - 1, other, at - 1, -1, LONGEST)
            if length < key[0]:
                continue
            found = (length, _common(text, 0, other, 0, 1, LONGEST))
            if found > key:
                best, key = place, found
        return best


def _common(a: Text, i: int, b: Text, j: int, step: int, most: int) -> int:
    """How many tokens agree from `a[i]` and `b[j]` on, in steps of 1 or -1."""
    count = 0
    while count < most and 0 <= i < len(a) and 0 <= j < len(b) and a[i] == b[j]:
        count, i, j = count + 1, i + step, j + step
    return count
