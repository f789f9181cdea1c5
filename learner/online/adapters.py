"""peft's adapters as plain weights: what the model in training computes with, module by module.

peft merges its own adapters, into a float32 copy of one layer at a time: so every setting is merged
by the code that knows it, and the model in training is never touched. `check_servable` refuses by
name what a plain model cannot compute, `check_separable` what no pair of matrices beside one does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch


class Pair(NamedTuple):
    """What is added to a linear layer's weight [out, in]: `b @ a`."""

    a: torch.Tensor
    """[r, in]"""
    b: torch.Tensor
    """[out, r]"""


class Place(NamedTuple):
    """A module of the plain model, as it is trained."""

    path: str
    """Its name in the plain model."""
    trained: Any
    """What computes there: the module itself, a copy trained in its place, or a layer of peft."""
    plain: torch.nn.Module
    """What stood there before there were adapters; tied parameters are told by it."""

    @property
    def adapted(self) -> bool:
        """Whether adapters have to be merged to know its weights."""
        return hasattr(self.trained, "base_layer")

    def names(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Name in the plain model, and the plain parameter, of each parameter that it has."""
        return [(f"{self.path}.{name}".lstrip("."), one) for name, one in _own(self.plain)]

    def sources(self) -> list[torch.nn.Parameter]:
        """Every parameter that its weights are made of."""
        if self.adapted:
            return list(self.trained.parameters())
        return [one for _, one in _own(self.trained)]

    def weights(self) -> list[torch.Tensor]:
        """Its weights, in the order of `names`. `sources` must be whole."""
        module = self.trained
        if self.adapted:
            module = _merge(_copy(module))
        return [one.detach() for _, one in _own(module)]

    def adapters(self) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter, float]]:
        """(A, B, scaling) of each active adapter of a linear layer."""
        layer = self.trained
        return [
            (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
            for name in layer.active_adapters
            if name in layer.lora_A
        ]

    def pair(self, rank: int) -> Pair:
        """All of them as one of `rank`, which may be more than they have, in float32. `adapters`
        must be whole."""
        found = self.adapters()
        a = torch.cat([one.detach().float() for one, _, _ in found])
        b = torch.cat([one.detach().float() * scale for _, one, scale in found], 1)
        more = rank - len(a)
        return Pair(
            torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))
        )


def places(model: torch.nn.Module) -> Iterator[Place]:
    """Every module with parameters of its own, adapters merged, in the order of the plain model."""
    if hasattr(model, "peft_config"):
        model = model.get_base_model()
    yield from _places("", model, model)


def _places(path: str, trained: Any, plain: torch.nn.Module) -> Iterator[Place]:
    if hasattr(trained, "modules_to_save"):
        before, after = trained.original_module, trained
        if trained.active_adapters:
            after = trained.modules_to_save[trained.active_adapters[0]]
        yield from _places(path, after if after is not trained else before, before)
    elif hasattr(trained, "token_adapter"):
        yield Place(path, trained.token_adapter, _stripped(plain))
    elif hasattr(trained, "base_layer"):
        yield Place(path, trained, _stripped(plain))
    else:
        if any(True for _ in _own(trained)):
            yield Place(path, trained, plain)
        for name, child in trained.named_children():
            below = f"{path}.{name}".lstrip(".")
            yield from _places(below, child, getattr(_stripped(plain), name))


def _stripped(module: Any) -> Any:
    """The module without what peft has put around it."""
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(module: Any) -> Any:
    if hasattr(module, "modules_to_save"):
        return module.original_module
    if hasattr(module, "token_adapter"):
        return module.token_adapter.base_layer
    return getattr(module, "base_layer", None)


def _own(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, one) for name, one in module._parameters.items() if one is not None]


def _copy(module: Any) -> Any:
    """A copy in float32 for merging into: no hook comes along, and nothing of it is shared but
    parameters, which a safe merge replaces and does not change."""
    twin = copy.copy(module)
    twin._parameters = {
        name: None if one is None else torch.nn.Parameter(one.detach().float(), False)
        for name, one in module._parameters.items()
    }
    twin._buffers = dict(module._buffers)
    twin._modules = {name: _copy(child) for name, child in module._modules.items()}
    for name in ("merged_adapters", "_caches"):
        if name in twin.__dict__:
            setattr(twin, name, copy.copy(getattr(module, name)))
    return twin


def _merge(layer: Any) -> Any:
    """The base layer with peft's adapters merged into it, as `merge_and_unload` does."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        return layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=True, adapter_names=None
        )
    layer.merge(safe_merge=True)
    return layer.get_base_layer()


def check_servable(model: Any, where: str = "learner.lora") -> None:
    """Raise ValueError where no plain model computes what the adapted one does."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    tied: dict[int, tuple[str, frozenset[int]]] = {}
    for place in places(model):
        layer = place.trained
        if place.adapted and not (isinstance(layer, LoraLayer) or hasattr(layer, "token_indices")):
            raise ValueError(
                f"weights of {place.path} ({type(layer).__name__}) cannot be merged for the actor; "
                "train it with LoRA"
            )
        if any(getattr(layer, "lora_bias", {}).values()) and (
            getattr(place.plain, "bias", None) is None
        ):
            raise ValueError(
                f"{where}.lora_bias cannot be served: {place.path} has no bias that the adapter's "
                "could be added to; leave it out"
            )
        made_of = frozenset(id(one) for one in place.sources())
        for name, plain in place.names():
            first, before = tied.setdefault(id(plain), (name, made_of))
            if before != made_of and name != first:
                raise ValueError(
                    f"{where}: {first} and {name} are one tensor of this model, and adapters would "
                    "make two of it, which actors cannot load; leave both out of target_modules, "
                    "or train both whole (modules_to_save with ensure_weight_tying) or some of "
                    "their rows (trainable_token_indices)"
                )


def check_separable(model: Any, where: str = "learner.lora") -> None:
    """Raise ValueError where adapters alone do not say what is trained, or vLLM cannot serve them
    beside a plain model."""
    from peft.tuners.lora import Linear

    base = model.get_base_model()
    ends = {id(_stripped(base.get_input_embeddings())), id(_stripped(base.get_output_embeddings()))}
    separate: set[int] = set()
    for place in places(model):
        if not place.adapted:
            continue
        plain = type(place.plain) is torch.nn.Linear and isinstance(place.trained, Linear)
        if not plain or id(place.plain) in ends:
            raise ValueError(
                f"{where}: {place.path} ({type(place.plain).__name__}) cannot be served with an "
                "adapter of its own, as linear layers can that are not the head; leave it out of "
                "target_modules, or let learner.weight_sync be merged"
            )
        separate.update(id(part) for one in place.adapters() for part in one[:2])
    for name, one in model.named_parameters():
        if one.requires_grad and id(one) not in separate:
            raise ValueError(
                f"{where}: {name} is trained and is no adapter's matrix, so adapters alone do not "
                "say what the model computes; let learner.weight_sync be merged"
            )
