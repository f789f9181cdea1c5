"""A chat model of two layers, and gold texts for it."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dynatok_online.tasks import writing
from dynatok_online.tasks.rewriting import rewritten
from tests.prompt.tokenizers import build
from tests.tasks.test_rewriting import TEXT

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_model(path: Path) -> Path:
    """A chat model of random weights, in this folder."""
    tokenizer = build("gpt2")
    tokenizer.chat_template = CHAT
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
        )
    ).save_pretrained(path)
    return path


def gold_rows(split: str, count: int) -> list[dict[str, Any]]:
    """So many gold texts with two edits each."""
    rows = []
    for i in range(count):
        rng = random.Random(i)
        slots = rng.choice(writing.SLOTS)
        states = writing.drawn_states(rng, slots)
        segments = rewritten(TEXT, states, partial(writing.drawn_change, rng), rng, edits=2)
        assert segments is not None
        row = writing.gold_row(f"{split}-{i}", "the sea", slots, segments)
        rows.append(row | {"split": split})
    return rows
