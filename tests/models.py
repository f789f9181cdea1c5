"""Tiny random models of the architectures that spans must be right for."""

from __future__ import annotations

import types
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def make(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model of `name` with random weights, made larger than usual so that attention matters."""
    import transformers as t

    settings = {**COMMON, **changes}
    if name == "qwen3":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**settings))
    elif name == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**settings))
    elif name == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**settings))
    elif name == "mistral":
        model = t.MistralForCausalLM(t.MistralConfig(**{"sliding_window": 5, **settings}))
    elif name == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        config = t.Gemma3TextConfig(
            **{"sliding_window": 5, "layer_types": layers, "query_pre_attn_scalar": 8, **settings}
        )
        model = t.Gemma3ForCausalLM(config)
    elif name == "gpt_oss":
        layers = ["sliding_attention", "full_attention"]
        few = {"num_local_experts": 4, "num_experts_per_tok": 2}
        config = t.GptOssConfig(**{"sliding_window": 5, "layer_types": layers, **few, **settings})
        model = t.GptOssForCausalLM._from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        )
    elif name == "gpt2":
        config = t.GPT2Config(
            vocab_size=23,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = t.GPT2LMHeadModel(config)
    else:
        raise ValueError(name)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(float("norm" in path) + 0.2 * noise)
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = types.MethodType(_norm, module)
    return model


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in float64: transformers' own goes through float32 whatever comes in."""
    eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
    gain = self.weight + (1.0 if type(self).__name__.startswith("Gemma") else 0.0)
    return gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
