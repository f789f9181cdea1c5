"""Where the GPU's time goes: kernels by the operator that launched them, in a few groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

GROUPS = ("linear", "attention", "logits and loss", "optimizer", "else")
"""What a training step is made of. `else`: norms, rotations, activations, sums, copies."""

OPTIMIZER = "optimizer step"
"""A profiler's range of this name, or torch's own for an optimizer, makes what is in it so."""

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm")
_ATTENTION = ("flash_attention", "scaled_dot_product", "flex_attention", "varlen_attn")


def group(names: Iterable[str], shapes: Iterable[Any], vocabulary: int) -> str:
    """The group of an operator: `names` from itself outward, `shapes` those of its inputs."""
    names = list(names)
    if any(name == OPTIMIZER or name.startswith("Optimizer.") for name in names):
        return "optimizer"
    if any(word in name for name in names for word in _ATTENTION):
        return "attention"
    if any(isinstance(shape, (list, tuple)) and vocabulary in shape for shape in shapes):
        return "logits and loss"
    return "linear" if names[0] in _PRODUCTS else "else"


def kernel_times(profiler: Any, vocabulary: int) -> dict[str, float]:
    """Milliseconds of kernels by group, from a profile with CUDA and `record_shapes`."""
    found = dict.fromkeys(GROUPS, 0.0)
    for event in profiler.events():
        if event.kernels:
            spent = sum(kernel.duration for kernel in event.kernels) / 1e3
            found[group(_outward(event), event.input_shapes or (), vocabulary)] += spent
    return found


def _outward(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent
