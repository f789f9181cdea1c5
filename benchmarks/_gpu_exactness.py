"""Exactness on a GPU: every attention against plain forwards, and packed against truncated."""

from __future__ import annotations

import copy
import time
import types
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from benchmarks._edited_response import edited_response
from benchmarks._gpu_report import Report, short
from benchmarks._gpu_shapes import QWEN3_06B, SMALL, make
from benchmarks._step_cost import forward_backward
from dynatok_online import attention
from dynatok_online.rows.parts import Part
from dynatok_online.rows.plan import plan_rows
from dynatok_online.trajectory import Trajectory

Gradients = dict[str, torch.Tensor]

SLACK = 2.5
"""An error may be so many times that of truncated passes at the same precision."""

FLOAT32 = 2e-6
"""What the order of sums may change in float32."""


def qwen3(size: int, layers: int, vocabulary: int) -> Any:
    """A Qwen3 with random weights: `size` wide, heads of 64 or 128."""
    head = 128 if size >= 1024 else 64
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=size,
            intermediate_size=3 * size,
            num_hidden_layers=layers,
            num_attention_heads=size // head,
            num_key_value_heads=size // head // 2,
            head_dim=head,
            max_position_embeddings=32768,
        )
    )


def mistral(vocabulary: int) -> Any:
    """A small Mistral whose window is shorter than the texts."""
    torch.manual_seed(0)
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            sliding_window=50,
        )
    )


def in_float64(model: Any, device: str) -> Any:
    """A copy whose norms are float64, too: transformers' own go through float32."""
    model = copy.deepcopy(model).to(device=device, dtype=torch.float64)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)
    return model


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def oracle(model: Any, trajectory: Trajectory) -> Gradients:
    """Gradients of the mean loss, by one plain forward per pass of an `exact` trajectory."""
    model.zero_grad()
    for k in range(len(trajectory.passes)):
        ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long, device=model.device)
        at = slice(trajectory.fed_length(k) - 1, -1)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, at]
        loss = F.cross_entropy(logits, ids[trajectory.fed_length(k) :], reduction="sum")
        (loss / len(trajectory.response)).backward()
    return gradients(model)


def gradients(model: Any) -> Gradients:
    """In float64, by parameter."""
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def apart(a: Gradients, b: Gradients) -> float:
    """Relative difference of two sets of gradients, over all parameters."""
    difference = sum(float((a[name] - b[name]).square().sum()) for name in b)
    return float((difference / sum(float(one.square().sum()) for one in b.values())) ** 0.5)


def run(model: Any, kind: str, trajectory: Trajectory, strategy: str) -> tuple[float, Gradients]:
    """Loss, and gradients, through our attention; no row longer than one trajectory needs."""
    attention.prepare(model, kind)
    longest = trajectory.kv_length(len(trajectory.passes) - 1) * len(trajectory.passes)
    rows = plan_rows([trajectory], max_tokens=longest, strategy=strategy)
    loss = forward_backward(model, [Part(row) for row in rows])
    return float(loss), gradients(model)


def against_oracle(report: Report, device: str, kinds: Sequence[str], seconds: float) -> bool:
    """Every attention against one plain float64 forward per pass; whether all was as it should."""
    report.table(
        f"Gradients against one plain float64 forward per pass: {', '.join(kinds)}",
        "",
        (
            *("model", "attention", "dtype", "relative error"),
            *("of truncated passes at this precision", "kernel that served", "s"),
        ),
    )
    vocabulary, ends = 512, time.monotonic() + seconds
    shape = (150, 16, 120, 4) if device == "cuda" else (40, 4, 24, 3)
    exact = edited_response("exact", *shape, vocabulary)
    well = True
    for name, plain in (("Qwen3", qwen3(256, 2, vocabulary)), ("Mistral", mistral(vocabulary))):
        wanted = oracle(in_float64(plain, device), exact)
        well &= _lines(report, name, plain, exact, wanted, "truncated", kinds, device, ends)
    return well


def _lines(
    report: Report,
    name: str,
    plain: Any,
    trajectory: Trajectory,
    wanted: Gradients,
    strategy: str,
    kinds: Sequence[str],
    device: str,
    ends: float,
) -> bool:
    """A line for each precision and attention; whether all came as near to `wanted` as rows of
    `strategy` through `dense` do at the same precision."""
    well = True
    for dtype in (torch.float32, torch.bfloat16):
        given = copy.deepcopy(plain).to(device=device, dtype=dtype)
        baseline = apart(run(given, "dense", trajectory, strategy)[1], wanted)
        for kind in kinds:
            began = time.monotonic()
            served = "?"
            if began > ends:
                shown = "left out: no time"
                well = False
            else:
                # Anything that a kernel or a compiler raises is a line of the report.
                try:
                    error = apart(run(given, kind, trajectory, "packed")[1], wanted)
                    shown = f"{error:.1e}"
                    well &= error <= SLACK * baseline + FLOAT32
                    served = kernel_that_served(given, kind, trajectory)
                except Exception as problem:
                    shown = f"failed: {short(problem)}"
                    # FlexAttention has no backward on CPUs.
                    well &= (device, kind) == ("cpu", "flex")
            took = f"{time.monotonic() - began:.1f}"
            precision = str(dtype).removeprefix("torch.")
            report.row(name, kind, precision, shown, f"{baseline:.1e}", served, took)
    return well


REUSED = ("sticky", "refresh:16", "turned")
"""Ways to reuse KV after an edit that no single forward can stand for."""


def of_every_reuse(report: Report, device: str, kinds: Sequence[str], seconds: float) -> bool:
    """Rows that see KV of other states; whether every attention was as near as `dense` is."""
    report.table(
        f"Rows that see KV of other states: {', '.join(kinds)}",
        "Gradients of packed rows against the same rows through `dense` in float64, which the "
        "tests hold to a decode with a real cache.",
        (
            *("reuse", "attention", "dtype", "relative error"),
            *("of dense at this precision", "kernel that served", "s"),
        ),
    )
    vocabulary, ends = 512, time.monotonic() + seconds
    shape = (150, 16, 120, 4) if device == "cuda" else (40, 4, 60, 3)
    plain = qwen3(256, 2, vocabulary)
    well = True
    for policy in REUSED:
        one = edited_response(policy, *shape, vocabulary)
        wanted = run(in_float64(plain, device), "dense", one, "packed")[1]
        well &= _lines(report, policy, plain, one, wanted, "packed", kinds, device, ends)
    return well


_SERVING = ("_flash_attention_", "_scaled_dot_product_", "_efficient_attention_", "_cudnn_")


def kernel_that_served(model: Any, kind: str, trajectory: Trajectory) -> str:
    """The attention operators of torch that ran in a forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run(model, kind, trajectory, "packed")
    names = {event.key.removeprefix("aten::") for event in found.key_averages()}
    forward = {name for name in names if name.startswith(_SERVING) and "backward" not in name}
    return ", ".join(sorted(forward)) or "compiled"


def against_truncated(report: Report, device: str) -> bool:
    """Packed `concat` against truncated passes at the shape of a real model."""
    shape, layers = (QWEN3_06B, QWEN3_06B.layers) if device == "cuda" else (SMALL, SMALL.layers)
    report.table(
        f"Packed against truncated, {shape.name} with random weights",
        "One trajectory of 1024 static tokens, a slot of 32, 512 response tokens, 4 states. Both "
        "are measured against one plain float64 forward per pass; in bfloat16, against truncated "
        "passes in float32."
        if device == "cuda"
        else "",
        ("layers", "dtype", "loss, relative", "gradients, relative", "of truncated", "well"),
    )
    size = (1024, 32, 512, 4) if device == "cuda" else (40, 4, 24, 3)
    few = min(4, layers)
    one = edited_response("exact", *size, shape.vocabulary)
    model = make(shape, device, torch.float32, few)
    right = oracle(in_float64(model, device), one)
    loss, packed = run(model, "concat", one, "packed")
    wanted_loss, wanted = run(model, "concat", one, "truncated")
    error, baseline = apart(packed, right), apart(wanted, right)
    loss_error = abs(loss - wanted_loss) / wanted_loss
    well = error <= SLACK * baseline and loss_error <= FLOAT32
    report.row(
        str(few), "float32", f"{loss_error:.1e}", f"{error:.1e}", f"{baseline:.1e}", _said(well)
    )

    model = make(shape, device, torch.bfloat16, layers)
    half = {strategy: run(model, "concat", one, strategy) for strategy in ("packed", "truncated")}
    wanted_loss, wanted = run(model.float(), "concat", one, "truncated")
    errors = {name: apart(found, wanted) for name, (_, found) in half.items()}
    losses = {name: abs(found - wanted_loss) / wanted_loss for name, (found, _) in half.items()}
    as_well = errors["packed"] <= SLACK * errors["truncated"]
    report.row(
        str(layers),
        "bfloat16",
        f"{losses['packed']:.1e}",
        f"{errors['packed']:.2e}",
        f"{losses['truncated']:.1e} and {errors['truncated']:.2e}",
        _said(as_well),
    )
    return well and as_well


def _said(well: bool) -> str:
    return "yes" if well else "NO"
