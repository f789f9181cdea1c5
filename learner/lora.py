"""What of `learner.lora` can be served, merged into the weights or as adapters of their own.

`check_names` and `check_adapter` look at the names alone. `check_model` builds model and adapters
without weights and looks at what came out; it is exact, and takes as long as importing torch and
peft does. A process of its own does it before a run starts:

    python -m learner.lora MODEL '{"r": 8, "target_modules": ["embed_tokens"]}' merged
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

SYNCS: Final = ("merged", "adapter")
"""How what LoRA trains reaches actors."""

_UNSERVABLE: Final = {
    "alora_invocation_tokens": "it adapts only what follows certain tokens",
    "arrow_config": "it chooses among adapters token by token",
    "use_bdlora": "peft does not merge its blocks",
    "layer_replication": "it makes a model with other layers",
    "megatron_config": "it is for Megatron's layers",
}
"""Arguments of peft's `LoraConfig` -> why no plain model computes the same."""

_NO_ADAPTER: Final = {
    "use_dora": "vLLM computes no DoRA",
    "lora_bias": "vLLM takes no bias of an adapter",
    "modules_to_save": "what it trains whole is no adapter",
    "trainable_token_indices": "rows of an embedding are no adapter",
    "target_parameters": "experts travel merged only",
}
"""Arguments -> why vLLM's LoRA serving does not compute the same."""

_INITS: Final = ("gaussian", "orthogonal", "eva", "mica")
"""Beginnings, besides true and false, that leave the model's own weights alone."""

_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` may be."""


def check_names(lora: Mapping[str, Any], where: str = "learner.lora") -> None:
    """Raise ValueError for an argument that cannot be served whatever the model is."""
    for name, why in _UNSERVABLE.items():
        if lora.get(name):
            raise ValueError(
                f"{where}.{name} cannot be served: actors load adapters merged into the weights, "
                f"and {why}; leave it out"
            )


def check_adapter(lora: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that vLLM cannot serve as an adapter of its own."""
    if not lora:
        raise ValueError(
            "learner.weight_sync adapter sends what learner.lora trains, and that is empty: write "
            "learner.lora, such as {r: 8, target_modules: all-linear}, or weight_sync merged"
        )
    whys = {name: why for name, why in _NO_ADAPTER.items() if lora.get(name)}
    if lora.get("bias", "none") != "none":
        whys["bias"] = "vLLM takes no bias of an adapter"
    begin = lora.get("init_lora_weights", True)
    if isinstance(begin, str) and begin not in _INITS:
        whys["init_lora_weights"] = f"{begin} changes the model's own weights, which stay here"
    for name, why in whys.items():
        raise ValueError(
            f"learner.lora.{name} cannot be served as an adapter: {why}; leave it out, or let "
            "learner.weight_sync be merged"
        )
    if rank_of(lora) > _RANKS[-1]:
        raise ValueError(
            f"learner.lora has rank {rank_of(lora)}, and vLLM serves adapters up to {_RANKS[-1]}; "
            "write less, or let learner.weight_sync be merged"
        )


def rank_of(lora: Mapping[str, Any]) -> int:
    """The largest rank of any layer."""
    ranks = [lora.get("r", 8), *dict(lora.get("rank_pattern") or {}).values()]
    for one in ranks:
        if isinstance(one, bool) or not isinstance(one, int) or one < 1:
            raise ValueError(f"learner.lora: a rank must be a whole number from 1 on, got {one!r}")
    return max(ranks)


def engine_arguments(lora: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments that serve such adapters, one version of them at a time."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(one for one in _RANKS if one >= rank_of(lora)),
    }


def check_model(model: str, lora: Mapping[str, Any], sync: str = "merged") -> None:
    """Raise ValueError where the adapters that `lora` puts into `model` cannot be served so.

    A model that is not on this machine is left to the learner, which fetches it.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from learner.online.adapters import check_separable, check_servable
    from learner.training import lora_arguments

    config = lora_arguments({**lora, "init_lora_weights": False})["peft_config"]
    try:
        found = AutoConfig.from_pretrained(model)
    except OSError:
        return
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(found)
        plain.tie_weights()
        try:
            adapted = get_peft_model(plain, config)
        except ValueError as error:  # no such modules, for example
            raise ValueError(f"learner.lora: {error}") from error
    check_servable(adapted)
    if sync == "adapter":
        check_separable(adapted)


if __name__ == "__main__":
    try:
        check_model(sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:])
    except ValueError as error:
        sys.exit(" ".join(str(error).split()))
