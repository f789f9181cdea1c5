"""Every causal model family that transformers and vLLM share, small and with random weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # width and depth
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_positions": 256,
    "d_model": 32,
    "n_layers": 2,
    "max_seq_len": 256,
    # heads
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "v_head_dim": 6,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "swa_v_head_dim": 6,
    "n_head": 4,
    "n_heads": 4,
    "rotary_dim": 8,
    "sliding_window": 5,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "first_k_dense_replace": 1,
    # dropout, which rows of spans do without
    "attention_dropout": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "hidden_dropout": 0.0,
    "dropout": 0.0,
}
"""What each configuration knows of these is set."""

LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "num_key_value_heads": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 4,
}
"""The same for attention over a latent, whose values are narrower than its keys."""

OTHERWISE: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"attn_pdrop": 0.0, "kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "longcat_flash": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "cohere2_moe": {"layer_types": ["sliding_attention", "full_attention"]},
    "afmoe": {"layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "exaone_moe": {"layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {
        "layer_types": ["full_attention", "sliding_attention"],
        "use_sliding_window": True,
    },
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"]},
}
"""What some families need beside. Where layers differ there is one of each kind."""


def families() -> dict[str, str]:
    """`model_type` -> class: every causal family of transformers whose class vLLM knows, too."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from actor.engine.models import served_classes

    served = served_classes()
    found = {}
    for name, kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if kind not in served:
            continue
        # A model of images and text has its text's model under a name of its own.
        config = CONFIG_MAPPING[name]
        if config is getattr(transformers, kind).config_class and not config.sub_configs.get(
            "vision_config"
        ):
            found[name] = kind
    return dict(sorted(found.items()))


def small_config(name: str, **changes: Any) -> Any:
    """A configuration of family `name`, as small as it can be."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    known = set(getattr(kind, "__dataclass_fields__", None) or inspect.signature(kind).parameters)
    known |= set(kind.attribute_map)
    sizes = dict(SIZES)
    if "kv_lora_rank" in known:
        sizes |= LATENT
        del sizes["head_dim"]
    given = {key: value for key, value in sizes.items() if key in known}
    return kind(**{**given, **OTHERWISE.get(name, {}), **changes})


def small_model(name: str, **changes: Any) -> Any:
    """A model of family `name` with random weights in float64, larger than usual so that attention
    matters, whose attention is written out (`eager`): what transformers itself defines."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])._from_config(
        small_config(name, **changes), attn_implementation="eager", experts_implementation="eager"
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(float("norm" in path) + 0.2 * noise)
    return model.double().eval()
