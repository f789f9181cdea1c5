"""Which strings a tokenizer turns into control tokens, and where a chat's turn ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """String -> id of a transformers tokenizer's control tokens.

    Those that it marks special, and the added ones that its chat template writes (`<think>`).
    Other added tokens, such as runs of blanks, are text.
    """
    added = added_tokens(tokenizer)
    chat = _chat_template(tokenizer)
    if not added:  # Mistral's own lists names alone
        names = getattr(tokenizer, "all_special_tokens", None) or []
        return {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    return {
        one.content: number
        for number, one in added.items()
        if one.content.strip() and (one.special or one.content in chat)
    }


def added_tokens(tokenizer: Any) -> Mapping[int, Any]:
    """Id -> added token; empty where the tokenizer keeps no such table."""
    found = getattr(tokenizer, "added_tokens_decoder", None)
    return found if isinstance(found, Mapping) else {}


def _chat_template(tokenizer: Any) -> str:
    found = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(found.values()) if isinstance(found, Mapping) else str(found)


def turn_end(tokenizer: Any, control: Mapping[str, int]) -> int | None:
    """The control token that the chat template writes behind an assistant's answer, if any."""
    if not _chat_template(tokenizer):
        return None
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "\ue000answer\ue000"},
    ]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may refuse anything; then it says nothing about its end
        return None
    after = text.rpartition("\ue000")[2]
    found = [(after.index(name), -len(name), control[name]) for name in control if name in after]
    return min(found)[2] if found else None
