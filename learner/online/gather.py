"""The model's weights as they are right now, whole, on the CPU, without adapters.

Works where a plain state dict does not: parameters that ZeRO-3 has partitioned are gathered one
module at a time, and LoRA adapters are added to a copy of the weights that they adapt, so the
model in training is never touched. A tied tensor appears once, under its first name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_PEFT_PREFIX = "base_model.model."


def gather_weights(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Name -> CPU copy in `dtype`. Under ZeRO-3 every rank must call it."""
    adapted = _adapted(model)
    out: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = adapted.get(owner.removesuffix(".base_layer"))
        if _is_adapter(owner) or (".original_module" in owner):
            continue
        with _whole([parameter] if layer is None else list(layer.parameters())):
            value = parameter.detach()
            if layer is not None and leaf == "weight":
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_A:
                        value = value + layer.get_delta_weight(adapter).detach().to(value.dtype)
            out[_checkpoint_name(name)] = value.to("cpu", dtype, copy=True).contiguous()
    return out


def as_checkpoint(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gathered weights as a checkpoint on disk names them, which is what an engine loads.

    transformers holds the experts of a layer in one tensor, checkpoints each in one of its own.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return dict(revert_weight_conversion(base, dict(weights)))


def _adapted(model: torch.nn.Module) -> dict[str, Any]:
    """Module name -> LoRA layer. Raises ValueError for adapters that cannot be merged."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    out = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and hasattr(module, "get_delta_weight"):
            out[name] = module
        elif isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"weights of {name} ({type(module).__name__}) cannot be merged for the actor; use "
                "LoRA on linear layers"
            )
    return out


def _is_adapter(owner: str) -> bool:
    return any(part.startswith("lora_") for part in owner.split("."))


def _checkpoint_name(name: str) -> str:
    """`base_model.model.lm_head.modules_to_save.default.weight` -> `lm_head.weight`."""
    if not name.startswith(_PEFT_PREFIX):
        return name
    parts = name.removeprefix(_PEFT_PREFIX).split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return ".".join(part for part in parts if part != "base_layer")


@contextlib.contextmanager
def _whole(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    partitioned = [one for one in parameters if hasattr(one, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield
