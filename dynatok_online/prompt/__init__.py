"""Prompts with slots, and their token ids: templates, chat messages, borders between pieces.

`template` reads text with `{{places}}`, `chat` writes messages as such a text, `encoder` is a
model's tokenizer as prompts use it, `borders` and `cuts` say where pieces are cut, `renderer` gives
the token ids of a prompt in changing states. Read `template.py` first, then `renderer.py`.
"""

from dynatok_online.prompt.chat import ChatTemplate, chat_of, from_chat
from dynatok_online.prompt.encoder import Encode, Encoder
from dynatok_online.prompt.renderer import Renderer
from dynatok_online.prompt.template import (
    Part,
    Placement,
    Prompt,
    Response,
    Slot,
    Text,
    escaped,
    late,
    literal,
    parse,
    written,
)

__all__ = [
    "ChatTemplate",
    "Encode",
    "Encoder",
    "Part",
    "Placement",
    "Prompt",
    "Renderer",
    "Response",
    "Slot",
    "Text",
    "chat_of",
    "escaped",
    "from_chat",
    "late",
    "literal",
    "parse",
    "written",
]
