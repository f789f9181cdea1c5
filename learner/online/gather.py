"""The model's weights as they are right now: whole, adapters merged, or adapters alone.

`to_publish` says which tensors leave the learner, and how they come, one after the other.

Works where a plain state dict does not: parameters that ZeRO-3 has partitioned are gathered one
module at a time, and adapters are merged into a copy of the module that they adapt. What was handed
out is not kept, so the most that this takes is one module (a layer, where a checkpoint holds its
experts one by one). A tied tensor comes once, under its first name.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from learner.online.adapters import Place, places

Named = tuple[str, torch.Tensor]

_PEFT = "base_model.model."
"""How peft's names of tensors begin; engines that serve adapters know them by it."""


class ToPublish(NamedTuple):
    """What a version consists of."""

    stream: Callable[[], Iterator[Named]]
    """The tensors as they are now; see `stream_weights`."""
    shapes: dict[str, torch.Tensor]
    """Name -> a tensor without memory, as it will be."""
    trained: frozenset[str]
    """Those that training changes."""
    adapter_rank: int = 0
    """Of the adapters that these are; 0: they are the model's weights."""


def to_publish(model: torch.nn.Module, dtype: torch.dtype, sync: str) -> ToPublish:
    """`sync`: `merged` or `adapter`."""
    if sync == "adapter":
        rank = max(sum(_shape(a)[0] for a, _, _ in one.adapters()) for one in _adapted(model))
        adapters = dict(_adapter_shapes(model, dtype, rank))
        stream = partial(stream_adapters, model, dtype, rank)
        return ToPublish(stream, adapters, frozenset(adapters), rank)
    return ToPublish(
        partial(stream_weights, model, dtype),
        weight_shapes(model, dtype),
        frozenset(weight_shapes(model, dtype, trained=True)),
    )


def stream_weights(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[Named]:
    """Name as in a checkpoint, and CPU tensor in `dtype`, which may be the model's own memory: use
    it before the next one is asked for. Under ZeRO-3 every rank must take them all."""
    return _as_checkpoint(model, _stream(model, dtype))


def gather_weights(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All of them at once, under the names that the plain model itself gives them: for a file."""
    return {name: one.clone() for name, one in _stream(model, dtype)}


def weight_shapes(
    model: torch.nn.Module, dtype: torch.dtype, *, trained: bool = False
) -> dict[str, torch.Tensor]:
    """Name -> a tensor without memory, as `stream_weights` will give them; nothing is gathered.

    `trained`: only those that training changes.
    """
    return dict(_as_checkpoint(model, _shapes(model, dtype, trained)))


def stream_adapters(model: torch.nn.Module, dtype: torch.dtype, rank: int) -> Iterator[Named]:
    """The matrices of every adapted layer under peft's names, scaling in the second one, all of
    `rank`. Under ZeRO-3 every rank must take them all."""
    for place in _adapted(model):
        with _whole([part for a, b, _ in place.adapters() for part in (a, b)]):
            pair = place.pair(rank)
            for name, value in zip(_pair_names(place), pair, strict=True):
                yield name, value.to("cpu", dtype).contiguous()


def _adapter_shapes(model: torch.nn.Module, dtype: torch.dtype, rank: int) -> Iterator[Named]:
    for place in _adapted(model):
        (a, b, _), *_ = place.adapters()
        shapes = (rank, _shape(a)[1]), (_shape(b)[0], rank)
        for name, shape in zip(_pair_names(place), shapes, strict=True):
            yield name, torch.empty(shape, dtype=dtype, device="meta")


def _adapted(model: torch.nn.Module) -> Iterator[Place]:
    return (one for one in places(model) if one.adapted and one.adapters())


def _pair_names(place: Place) -> tuple[str, str]:
    name = f"{_PEFT}{place.path}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def _shape(one: torch.Tensor) -> tuple[int, ...]:
    """Of a whole parameter, which ZeRO-3 may hold in parts."""
    return tuple(getattr(one, "ds_shape", one.shape))


def _stream(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[Named]:
    for place, names in _once(model):
        with _whole(place.sources()):
            for (name, _), value in zip(place.names(), place.weights(), strict=True):
                if name in names:
                    yield name, value.to("cpu", dtype).contiguous()


def _shapes(model: torch.nn.Module, dtype: torch.dtype, trained: bool) -> Iterator[Named]:
    for place, names in _once(model):
        if trained and not any(one.requires_grad for one in place.sources()):
            continue
        for name, plain in place.names():
            if name in names:
                yield name, torch.empty(_shape(plain), dtype=dtype, device="meta")


def _once(model: torch.nn.Module) -> Iterator[tuple[Place, set[str]]]:
    """Each place with the names that are not those of tensors that came before."""
    seen: set[int] = set()
    for place in places(model):
        new = {name: id(plain) for name, plain in place.names() if id(plain) not in seen}
        if new:
            seen.update(new.values())
            yield place, set(new)


def _as_checkpoint(model: torch.nn.Module, weights: Iterable[Named]) -> Iterator[Named]:
    """Under the names of a checkpoint on disk, which is what an engine loads.

    transformers holds the experts of a layer in one tensor, checkpoints each in one of its own:
    where there is anything of that kind, a layer is converted at a time.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, revert_weight_conversion

    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    conversions = getattr(base, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(base, add_legacy=False)
    if not conversions:
        yield from weights
        return
    by_layer = any(isinstance(one, WeightConverter) for one in conversions)
    for _, group in itertools.groupby(weights, lambda one: _layer(one[0]) if by_layer else one[0]):
        yield from revert_weight_conversion(base, dict(group)).items()


def _layer(name: str) -> str:
    """`model.layers.3.mlp.experts.down_proj` -> `model.layers.3`; others are their own."""
    parts = name.split(".")
    numbers = (at for at, part in enumerate(parts) if part.isdecimal())
    return ".".join(parts[: next(numbers, len(parts)) + 1])


@contextlib.contextmanager
def _whole(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    partitioned = [one for one in parameters if hasattr(one, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield
