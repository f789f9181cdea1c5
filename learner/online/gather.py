"""The model's weights as they are right now, whole, on the CPU, adapters merged: one by one.

Works where a plain state dict does not: parameters that ZeRO-3 has partitioned are gathered one
module at a time, and adapters are merged into a copy of the module that they adapt. Nothing is kept
but what the caller keeps. A tied tensor comes once, under its first name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from learner.online.adapters import places


def gather_weights(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Name -> CPU copy in `dtype`. Under ZeRO-3 every rank must call it."""
    return dict(stream_weights(model, dtype))


def stream_weights(
    model: torch.nn.Module, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name, and CPU copy in `dtype`. Under ZeRO-3 every rank must take them all."""
    seen: set[int] = set()
    for place in places(model):
        new = [id(plain) not in seen for _, plain in place.names()]
        if not any(new):
            continue
        with _whole(place.sources()):
            copies = [one.to("cpu", dtype, copy=True).contiguous() for one in place.weights()]
        for (name, plain), value, is_new in zip(place.names(), copies, new, strict=True):
            seen.add(id(plain))
            if is_new:
                yield name, value


def as_checkpoint(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gathered weights as a checkpoint on disk names them, which is what an engine loads.

    transformers holds the experts of a layer in one tensor, checkpoints each in one of its own.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return dict(revert_weight_conversion(base, dict(weights)))


@contextlib.contextmanager
def _whole(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    partitioned = [one for one in parameters if hasattr(one, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield
