"""Token ids to the pieces of text that they add, one per token.

A character can be spread over several tokens: it is shown with the last of them, and the others
add nothing. Pieces joined are the text, so a range of characters is a range of tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from dynatok_online.adherence.scoring import Decode
from dynatok_online.trajectory import RESPONSE, Trajectory

_CUT = "\ufffd"
_BEHIND = 8
"""Tokens of context: some tokenizers write a token differently after a blank."""


class TokenTexts:
    """Grows with a response."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.starts: list[int] = []
        """Characters before each token."""
        self._length = 0
        self._shown = 0
        """Tokens whose text is complete."""

    def extend(self, token_ids: Sequence[int]) -> list[str]:
        """The texts of these further tokens."""
        first = len(self.ids)
        for token in token_ids:
            self.ids.append(token)
            behind = max(0, self._shown - _BEHIND)
            before = self.decode(self.ids[behind : self._shown])
            now = self.decode(self.ids[behind:])
            cut = now.endswith(_CUT) and len(self.ids) - self._shown < _BEHIND
            text = "" if cut or not now.startswith(before) else now[len(before) :]
            if not cut:
                self._shown = len(self.ids)
            self.texts.append(text)
            self.starts.append(self._length)
            self._length += len(text)
        return self.texts[first:]

    def cut(self, length: int) -> None:
        """Forget everything from token `length` on."""
        if length < len(self.ids):
            self._length = self.starts[length]
            del self.ids[length:], self.texts[length:], self.starts[length:]
            self._shown = min(self._shown, length)

    def text(self, start: int, stop: int | None = None) -> str:
        """The text of tokens `start .. stop`."""
        return "".join(self.texts[start:stop])

    def token_at(self, character: int) -> int:
        """The token that adds this character."""
        return bisect_right(self.starts, character) - 1


def fed_texts(trajectory: Trajectory, k: int, decode: Decode) -> list[list[str]]:
    """The texts of the tokens that pass `k` was fed, a list for each entry of its layout.

    Many tokenizers write a word differently behind a blank, so each piece is read behind what
    stands before it. The list of the response so far is empty.
    """
    texts = TokenTexts(decode)
    one = trajectory.passes[k]
    found: list[list[str]] = []
    for piece in one.layout:
        if piece == RESPONSE:
            texts.extend(trajectory.response[max(0, one.start - _BEHIND) : one.start].tolist())
            found.append([])
        else:
            found.append(texts.extend(trajectory.pieces[piece].tolist()))
    return found
