"""Which models the row layout is right for; the others are refused with what to use instead.

Invariant: never silently wrong. A model passes here if everything that mixes tokens in it is an
attention layer that asks transformers' registry which attention to use, and at run time each
attention call must bring the row's layout and the mark of our own mask function.
"""

from __future__ import annotations

from typing import Any

import torch

ATTENTION_LAYERS = ("full_attention", "sliding_attention")

UNKNOWN_TERMS = {
    "sinks": "attention sinks of a kind of its own",
    "position_bias": "a position bias added to attention scores",
    "alibi": "ALiBi",
}
"""Keywords of an attention call that change its result and that our kernels do not compute."""


SOFTCAPPED = (
    "soft-capped attention scores, which of our kernels only FlexAttention computes; use "
    "attention: flex (on a GPU), or a model without them"
)


def check_model(model: torch.nn.Module, attention: str = "concat") -> None:
    """Raises ValueError where rows of spans would be wrong for `model`, or for it through
    `attention`."""
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise ValueError(f"{name} is no transformers model; load it with AutoModelForCausalLM")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder; use a decoder-only model")
    if any(hasattr(config, part) for part in ("vision_config", "audio_config")):
        raise ValueError(
            f"{name} takes more than text, and may attend both ways within images; load its text "
            "model alone"
        )
    for other in sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS)):
        raise ValueError(
            f"{name} has layers of type {other!r}; rows of spans are right for "
            f"{' and '.join(ATTENTION_LAYERS)} only, because other layers carry state from one "
            "token to the next whatever it may see; use a model without them"
        )
    if getattr(config, "attention_chunk_size", None):
        raise ValueError(
            f"{name} attends within chunks of {config.attention_chunk_size} tokens, counted in "
            "the row and not by position; use a model with full or sliding-window attention"
        )
    supported = getattr(model, "_supports_attention_backend", False)
    if not supported:
        raise ValueError(
            f"{name} does not ask transformers' attention registry which attention to use, so "
            "spans cannot reach it; use strategy: truncated with TRL's own trainer, or a model "
            "whose class sets _supports_attention_backend"
        )
    for path, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, (torch.nn.RNNBase, torch.nn.Conv1d)) or "mamba" in kind.lower():
            raise ValueError(
                f"{name} mixes neighbouring tokens outside attention, in {path} ({kind}); use a "
                "model of attention and feed-forward layers only"
            )
    for term in ("attention_dropout", "attn_pdrop"):
        if getattr(config, term, None):
            raise ValueError(
                f"{name} has {term} = {getattr(config, term)}; set it to 0: kernels for spans drop "
                "nothing"
            )
    if getattr(config, "attn_logit_softcapping", None) and attention != "flex":
        raise ValueError(f"{name} has {SOFTCAPPED}")
    if getattr(config, "alibi", None):
        raise ValueError(
            f"{name} has {UNKNOWN_TERMS['alibi']}, which kernels for spans do not compute; use a "
            "model without it"
        )


def check_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    dropout: float,
    sinks: torch.Tensor | None,
    terms: dict[str, Any],
) -> None:
    """Raises ValueError where one attention call asks for what our kernels do not compute."""
    name = type(module).__name__
    if dropout:
        raise ValueError(f"{name} asks for attention dropout {dropout}; set it to 0 in the config")
    for term, meaning in UNKNOWN_TERMS.items():
        if terms.get(term) is not None:
            raise ValueError(
                f"{name} has {meaning}, which kernels for spans do not compute; use a model "
                "without them"
            )
    if sinks is None and getattr(module, "sinks", None) is not None:
        raise ValueError(
            f"{name} has attention sinks, but does not hand them to the attention function, so "
            "spans cannot take them into account; use a model without them"
        )
    if terms.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ValueError(f"{name} attends both ways; use a causal model")
    if query.shape[0] != 1:
        raise ValueError(f"a row is a batch of one, but {name} got a batch of {query.shape[0]}")
