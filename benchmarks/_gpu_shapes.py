"""Shapes of real models, made with random weights where they will run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Shape:
    """A Qwen3."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    tied: bool
    vocabulary: int = 151936


QWEN3_06B = Shape("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, True)
QWEN3_8B = Shape("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, False)
SMALL = Shape("a small Qwen3 (no GPU: a trial)", 2, 64, 4, 2, 16, 128, True, 512)


def make(
    shape: Shape,
    device: str,
    dtype: torch.dtype,
    layers: int | None = None,
    *,
    checkpointing: bool = True,
) -> Any:
    """The model in train mode, its activations computed again (`checkpointing`) or kept; weights
    are drawn on `device`."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(
                    vocab_size=shape.vocabulary,
                    hidden_size=shape.width,
                    intermediate_size=shape.intermediate,
                    num_hidden_layers=layers or shape.layers,
                    num_attention_heads=shape.heads,
                    num_key_value_heads=shape.kv_heads,
                    head_dim=shape.head,
                    tie_word_embeddings=shape.tied,
                    max_position_embeddings=32768,
                )
            )
    finally:
        torch.set_default_dtype(before)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()
