"""What one forward and backward of some rows costs: FLOPs, seconds, memory, and where they go."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._kernel_times import kernel_times
from dynatok_online import attention
from dynatok_online.rows.parts import Part
from dynatok_online.rows.row import Row


@dataclass(frozen=True)
class Flops:
    """Forward and backward of one method."""

    linear: float
    logits: float
    pairs: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.linear + self.logits + self.pairs


def count_flops(rows: Iterable[Row], model: Any) -> Flops:
    """Two per multiply-add; backward costs twice the forward."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1) - embedding.numel()
    if model.get_output_embeddings().weight is not embedding:
        weights -= head
    rows = list(rows)
    width = config.num_attention_heads * head_dim * config.num_hidden_layers
    return Flops(
        linear=6.0 * weights * sum(row.tokens for row in rows),
        logits=6.0 * head * sum(len(row.targets) for row in rows),
        pairs=12.0 * width * sum(row.pairs for row in rows),
    )


def step(model: Any, parts: Sequence[Part]) -> float:
    """Forward and backward of all parts; seconds."""
    _synchronize(model.device)
    began = time.perf_counter()
    forward_backward(model, parts)
    _synchronize(model.device)
    return time.perf_counter() - began


def forward_backward(model: Any, parts: Sequence[Part]) -> torch.Tensor:
    """The mean loss of all parts, and its gradients in the model's parameters."""
    model.zero_grad(set_to_none=True)
    device = model.device
    count = sum(_targets(part) for part in parts)
    total = torch.zeros((), device=device)

    def forward(part: Part, layout: attention.Layout) -> torch.Tensor:
        logits = model(**attention.inputs(part.row, device, layout), use_cache=False).logits[0]
        targets = attention.to_device(part.row.targets, device, torch.long)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / count
        total.add_(loss.detach())
        return loss

    for part in parts:
        attention.run_part(part, forward, lambda _, loss: loss.backward())
    return total


def _targets(part: Part) -> int:
    return len(part.row.targets) + sum(_targets(below) for below in part.below)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(model: Any, parts: Sequence[Part]) -> float | None:
    """Peak memory of one step beyond what was in use before it; None where nobody tells."""
    model.zero_grad(set_to_none=True)
    return peak_of(lambda: step(model, parts), model.device.type)


def peak_of(work: Callable[[], object], device: str) -> float | None:
    """Peak memory of `work`, in MB, beyond what was in use before it; None where nobody tells.

    On CPU the kernel's high-water mark. What the allocator kept of earlier steps is given back
    first, or a step that finds room in it would seem to need none.
    """
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except (AttributeError, OSError, KeyError):
        return None


def _status(name: str) -> int:
    """KiB of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0])


_KERNELS = {
    "linear": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "joined": ("_Joined", "_JoinedBackward"),
}


def profile(model: Any, parts: Sequence[Part], repeats: int = 3) -> dict[str, float]:
    """Milliseconds of one step (the quickest of some) in matrix products, in attention kernels, in
    joining their results (on a GPU: none), and in all else (norms, activations, the loss, and on
    a GPU what it waits)."""
    one = _profile_gpu if model.device.type == "cuda" else _profile
    return min((one(model, parts) for _ in range(repeats)), key=lambda ms: sum(ms.values()))


def _profile_gpu(model: Any, parts: Sequence[Part]) -> dict[str, float]:
    total = step(model, parts) * 1e3
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as found:
        step(model, parts)
    times = kernel_times(found, vocabulary=-1)
    kernels = {"linear": times["linear"], "attention": times["attention"], "joining": 0.0}
    return {**kernels, "other": total - sum(kernels.values())}


def _profile(model: Any, parts: Sequence[Part]) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        total = step(model, parts) * 1e3
    times = {event.key: event.cpu_time_total / 1e3 for event in found.key_averages()}
    of = {name: sum(times.get(key, 0.0) for key in keys) for name, keys in _KERNELS.items()}
    return {
        "linear": of["linear"],
        "attention": of["attention"],
        "joining": of["joined"] - of["attention"],
        "other": total - of["linear"] - of["joined"],
    }
