"""The text of each pass of a response, as it is judged.

A character whose bytes are spread over several tokens, or passes, belongs to the token that
completes it, and so to that token's pass. What a model thinks aloud first (`<think>`, up to
`</think>`) is nobody's answer: it is neither judged nor counted as text that came before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dynatok_online.prompt import Prompt, Response, Text
from dynatok_online.trajectory import Trajectory

Decode = Callable[[Sequence[int]], str]

THINK: Final = ("<think>", "</think>")


class PassTexts:
    """The text of a response and the places where its passes meet, in characters."""

    def __init__(
        self,
        response: Sequence[int],
        bounds: Sequence[tuple[int, int]],
        decode: Decode,
        *,
        thinking: bool = False,
    ) -> None:
        """`bounds` are response indices; `thinking`: the prompt has begun a thought."""
        self.bounds = bounds
        self._response = response
        self._decode = decode
        self._characters: dict[int, int] = {}
        self.text = decode(response)
        self.cuts = [0, *(self.characters(stop) for _, stop in bounds[:-1]), len(self.text)]
        """Where each pass begins, and the end."""
        self.begins = thought_end(self.text, thinking)
        """Where the answer begins."""

    @classmethod
    def of(cls, trajectory: Trajectory, decode: Decode, *, thinking: bool = False) -> PassTexts:
        """Of a trajectory's passes."""
        bounds = [(one.start, one.stop) for one in trajectory.passes]
        return cls(trajectory.response.tolist(), bounds, decode, thinking=thinking)

    def characters(self, tokens: int) -> int:
        """How many characters the first so many tokens complete."""
        if tokens >= len(self._response):
            return len(self.text)
        if tokens not in self._characters:
            self._characters[tokens] = self._completed(tokens)
        return self._characters[tokens]

    def _completed(self, tokens: int) -> int:
        so_far = self._decode(self._response[:tokens])
        if self.text.startswith(so_far):
            return len(so_far)
        # The last character is cut, and shows as another one.
        pairs = enumerate(zip(so_far, self.text, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(so_far), len(self.text)))

    def parts(self, k: int) -> tuple[str, str, str] | None:
        """What stands before pass `k`, in it, and after it; None for a pass of thoughts alone."""
        start, stop = max(self.cuts[k], self.begins), self.cuts[k + 1]
        if stop <= self.begins and self.begins:
            return None
        return self.text[self.begins : start], self.text[start:stop], self.text[stop:]

    def token_at(self, character: int, start: int, stop: int) -> int:
        """The last response index of `start .. stop` before which that many characters are."""
        low, high = start, stop
        while low < high:
            middle = (low + high + 1) // 2
            if self.characters(middle) <= character:
                low = middle
            else:
                high = middle - 1
        return low


def thought_end(text: str, thinking: bool = False) -> int:
    """Where the answer begins in a response; its length if it is all thought."""
    opened, closed = THINK
    thought, found, answer = text.partition(closed)
    if not found:
        return len(text) if thinking or thought.lstrip().startswith(opened) else 0
    return len(text) - len(answer.lstrip())


def begins_thinking(prompt: Prompt) -> bool:
    """Whether a prompt ends in a thought that the response goes on with."""
    before = prompt.parts[: prompt.parts.index(Response())]
    text = "".join(part.text for part in before if isinstance(part, Text) and part.control)
    opened, closed = THINK
    return text.rfind(opened) > text.rfind(closed)
