"""A model's tokenizer, as prompts use it: text to token ids, and control tokens only by name.

Text is text whatever it says: `<|im_end|>` in it becomes the tokens of these ten characters. What
the tokenizer writes depends on what stands before: some put a blank before the first word of a
text, and many join characters across any border. So there are three ways to ask:

    encoder(text)                 the ids of a whole text
    encoder.behind(text)          of a text that follows a control token
    encoder.within(text, left)    of a text that follows `left` without a break
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dynatok_online.prompt.control import added_tokens, control_tokens, turn_end

Encode = Callable[[str], list[int]]
"""Text to token ids, control tokens neither read nor added."""

_MARK: Final = "\U0010fffd"
_WORDS: Final = ("a", ".", "1")
_REMEMBERED: Final = 8192
"""Texts whose ids are kept, as long as they have no more than so many characters:"""
_LONG: Final = 1024


class Encoder:
    """Made by `Encoder.of` of a transformers tokenizer, or of a function.

    A function without a `behind` is taken to write every piece of a text alone, as where each
    character is a token: it is never asked for two pieces at once.
    """

    def __init__(
        self,
        encode: Encode,
        behind: Encode | None = None,
        *,
        control: Mapping[str, int] | None = None,
        strips: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
        first: Sequence[int] = (),
        stop: int | None = None,
        turn_stop: int | None = None,
    ) -> None:
        self._encode = encode
        self._encode_behind = behind or encode
        self.joins = behind is not None
        """Whether what it writes for a text depends on what stands beside it."""
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}
        self.control = dict(control or {})
        """Control tokens: string -> id."""
        self._strips = strips
        self.first = tuple(first)
        """What the tokenizer puts in front of a text by itself (beginning of sequence)."""
        self.stop = stop
        """What ends a text; None where the tokenizer knows nothing of the kind."""
        self.turn_stop = stop if turn_stop is None else turn_stop
        """What ends an assistant's turn."""
        names = "|".join(map(re.escape, sorted(self.control, key=len, reverse=True)))
        self._split = re.compile(f"({names})") if names else None
        self.memo: dict[Any, Any] = {}
        """What was found out about this tokenizer: see `borders`."""

    @classmethod
    def of(cls, given: Any) -> Encoder:
        """Of a transformers tokenizer, a function, or an encoder."""
        if isinstance(given, Encoder):
            return given
        if not hasattr(given, "convert_tokens_to_ids"):
            return cls(given)
        control = control_tokens(given)
        encode, behind = _plain(given, control)
        added = added_tokens(given).values()
        return cls(
            encode,
            behind,
            control=control,
            strips=(
                frozenset(one.content for one in added if getattr(one, "lstrip", False)),
                frozenset(one.content for one in added if getattr(one, "rstrip", False)),
            ),
            first=_first(given),
            stop=given.eos_token_id,
            turn_stop=turn_end(given, control),
        )

    def __call__(self, text: str) -> list[int]:
        """The ids of a whole text."""
        return list(self._ids(text, False))

    def behind(self, text: str) -> list[int]:
        """The ids of a text that follows a control token."""
        return list(self._ids(text, True))

    def within(self, text: str, left: str = "") -> list[int]:
        """The ids of a text in the middle of another one, which ends in `left`.

        Without `left`, or where the tokenizer joins the two, as after some word.
        """
        for before in (left, *_WORDS) if self.joins else ():
            if before and (found := after(self(before + text), self(before))) is not None:
                return found
        return self(text)

    def split(self, text: str) -> list[str | int]:
        """A text whose names of control tokens are meant: texts and ids in turn."""
        if self._split is None:
            return [text] if text else []
        pieces = self._split.split(text)
        left, right = self._strips
        out: list[str | int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                out.append(self.control[piece])
                continue
            if i > 0 and pieces[i - 1] in right:
                piece = piece.lstrip()
            if i + 1 < len(pieces) and pieces[i + 1] in left:
                piece = piece.rstrip()
            if piece:
                out.append(piece)
        return out

    def _ids(self, text: str, behind: bool) -> tuple[int, ...]:
        if not text:
            return ()
        encode = self._encode_behind if behind else self._encode
        if len(text) > _LONG:
            return tuple(encode(text))
        found = self._known.get((text, behind))
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[text, behind] = tuple(encode(text))
        return found


def after(whole: Sequence[int], beginning: Sequence[int]) -> list[int] | None:
    """`whole` without its beginning; None where it begins otherwise."""
    n = len(beginning)
    return list(whole[n:]) if list(whole[:n]) == list(beginning) else None


def before(whole: Sequence[int], end: Sequence[int]) -> list[int] | None:
    """`whole` without its end; None where it ends otherwise."""
    n = len(whole) - len(end)
    return list(whole[:n]) if n >= 0 and list(whole[n:]) == list(end) else None


def _first(tokenizer: Any) -> list[int]:
    """What the tokenizer writes before a text that may have control tokens around it."""
    plain = list(tokenizer.encode("a", add_special_tokens=False))
    framed = list(tokenizer.encode("a", add_special_tokens=True))
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start]
    return []


def _plain(tokenizer: Any, control: Mapping[str, int]) -> tuple[Encode, Encode]:
    """How it writes text, control tokens left alone: at the beginning, and after one of them."""
    # What it writes for an unknown character is no control token there.
    unknown = getattr(tokenizer, "unk_token", None)
    control = {name: number for name, number in control.items() if name != unknown}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python, as Mistral's own is
        return (_guarded(_in_python(tokenizer), control),) * 2
    from tokenizers import AddedToken, Tokenizer

    description = json.loads(backend.to_str())
    description["truncation"] = description["padding"] = None
    for one in description["added_tokens"]:
        if one["content"] in control:
            one["special"] = True
    if description["model"]["type"] == "Unigram":  # it finds them among its pieces, too
        for entry in description["model"]["vocab"]:
            if entry[0] in control:
                entry[0] = _MARK + entry[0]
    text_only = Tokenizer.from_str(json.dumps(description))
    # What stands after any added token stands after this one in the same way.
    text_only.add_tokens([AddedToken(_MARK, normalized=False)])
    text_only.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return list(text_only.encode(text.replace(_MARK, "\ufffd"), add_special_tokens=False).ids)

    def behind(text: str) -> list[int]:
        safe = _MARK + text.replace(_MARK, "\ufffd")
        return list(text_only.encode(safe, add_special_tokens=False).ids[1:])

    return _guarded(encode, control), _guarded(behind, control)


def _in_python(tokenizer: Any) -> Encode:
    def encode(text: str) -> list[int]:
        try:
            found = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        except (TypeError, ValueError):  # an option that it does not know
            found = tokenizer.encode(text, add_special_tokens=False)
        return list(found)

    return encode


def _guarded(encode: Encode, control: Mapping[str, int]) -> Encode:
    """`encode`, with names of control tokens letter by letter where it gives control tokens."""
    ids = set(control.values())
    names = re.compile("(" + "|".join(map(re.escape, control)) + ")")

    def guarded(text: str) -> list[int]:
        found = encode(text)
        if not ids.intersection(found):
            return found
        out: list[int] = []
        for piece in names.split(text):
            for one in piece if piece in control else [piece]:
                out += [i for i in encode(one) if i not in ids] if one else []
        return out

    return guarded
