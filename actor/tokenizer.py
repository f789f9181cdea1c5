"""The model's tokenizer, as sessions use it, and its chat template, as tasks do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from dynatok_online import tiny
from dynatok_online.prompt import Placement, from_chat
from dynatok_online.tasks.files import Chat


class Tokenizer(NamedTuple):
    """Text to token ids without special tokens, and back."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def load_tokenizer(model: str) -> Tokenizer:
    """A model's own; it encodes each text once, and leaves special tokens out of what it decodes.

    Raises OSError or ValueError for a model that has none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    @lru_cache(maxsize=4096)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    return Tokenizer(lambda text: list(encode(text)), decode)


def chat_of(model: str, placement: Placement = "head") -> Chat:
    """What turns chat messages into a template. ValueError for a model without a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.resolve(model))
    if not tokenizer.chat_template:
        raise ValueError(
            f"tasks hold chat messages, but model {model!r} has no chat template; write 'prompt' "
            "instead of 'messages', or take an instruction-tuned model"
        )
    return lambda messages: from_chat(messages, tokenizer, placement)
