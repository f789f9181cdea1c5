"""What `gpu.sh` runs: exactness of every attention on this device, then `pack` at a larger size.

Exactness is measured against one plain forward per pass through transformers' own attention, in
float64. Beside each stands the error of a baseline (one truncated pass per state through `dense`)
at the same precision: what rounding alone costs.
"""

from __future__ import annotations

import copy
import datetime
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from benchmarks._edited_response import edited_response
from benchmarks._step_cost import step
from benchmarks.pack import DEFAULT_SHAPES, measure
from dynatok_online import attention
from dynatok_online.rows.parts import Part
from dynatok_online.rows.plan import plan_rows
from dynatok_online.trajectory import Trajectory

Gradients = dict[str, torch.Tensor]


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


def exactness(device: str) -> Iterator[tuple[str, str, str, float | str, float]]:
    """(model, attention, dtype, error or what went wrong, error of the baseline)"""
    vocabulary = 512
    shape = (150, 16, 120, 4) if device == "cuda" else (40, 4, 24, 3)
    exact = edited_response("exact", *shape, vocabulary)
    for name, plain in (("Qwen3", qwen3(256, 2, vocabulary)), ("Mistral", mistral(vocabulary))):
        wanted = oracle(copy.deepcopy(plain).to(device=device, dtype=torch.float64), exact)
        for dtype in (torch.float32, torch.bfloat16):
            given = copy.deepcopy(plain).to(device=device, dtype=dtype)
            baseline = apart(run(given, "dense", exact, "truncated"), wanted)
            for kind in attention.ATTENTIONS:
                error: float | str
                try:
                    error = apart(run(given, kind, exact, "packed"), wanted)
                except (RuntimeError, ValueError) as problem:
                    error = f"failed: {str(problem).splitlines()[0][:90]}"
                yield name, kind, str(dtype).removeprefix("torch."), error, baseline


def run(model: Any, kind: str, trajectory: Trajectory, strategy: str) -> Gradients:
    """Gradients through our attention."""
    attention.prepare(model, kind)
    step(model, [Part(row) for row in plan_rows([trajectory], strategy=strategy)])
    return gradients(model)


def speed(device: str) -> tuple[str, list[dict[str, Any]]]:
    """What model it was, and the rows of `pack`."""
    if device == "cuda":
        model, what = qwen3(1024, 16, 32768), "Qwen3, width 1024, 16 layers, bfloat16"
        shapes: Sequence[Any] = (*DEFAULT_SHAPES, (4096, 64, 2048, 8))
        model, rounds = model.to(device=device, dtype=torch.bfloat16), 7
    else:
        model, what = qwen3(128, 2, 512), "Qwen3, width 128, 2 layers, float32 (no GPU: a trial)"
        shapes, rounds = [(32, 4, 32, 4)], 1
    attention.prepare(model.train(), "concat")
    return what, [row for shape in shapes for row in measure(shape, model, rounds, 32768)]


def main(folder: str) -> int:
    """Writes `report.md`; 1 where an attention failed that should work on this device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    lines = [
        "# Attention and packing on a GPU" if device == "cuda" else "# A trial without a GPU",
        "",
        f"{datetime.date.today()}, {hardware}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, `bash benchmarks/gpu.sh`",
        "",
        "## Gradients against one plain float64 forward per pass",
        "",
        "| model | attention | dtype | relative error | of truncated passes at this precision |",
        "|---|---|---|---|---|",
    ]
    failed = False
    for name, kind, dtype, error, baseline in exactness(device):
        shown = error if isinstance(error, str) else f"{error:.1e}"
        # FlexAttention has no backward on CPUs.
        failed |= isinstance(error, str) and (device, kind) != ("cpu", "flex")
        failed |= isinstance(error, float) and error > 2.5 * baseline + 2e-6
        lines.append(f"| {name} | {kind} | {dtype} | {shown} | {baseline:.1e} |")
        print(lines[-1], flush=True)
    what, rows = speed(device)
    lines += [
        "",
        f"## `pack`: {what}",
        "",
        "Speed against each baseline, in brackets the bound by FLOPs.",
        "",
        "| static, slot, response, states | method | ms | tokens | peak MB "
        "| against snapshot | against truncated | against static |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = ", ".join(str(row[key]) for key in ("static", "slot", "response", "states"))
        ratios = " | ".join(
            f"{row[f'speedup_vs_{over}']:.2f} ({row[f'bound_vs_{over}']:.2f})"
            for over in ("snapshot", "truncated", "static")
        )
        peak = "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        lines.append(
            f"| {shape} | {row['strategy']} | {row['seconds'] * 1e3:.1f} | {row['tokens']} "
            f"| {peak} | {ratios} |"
        )
        print(lines[-1], flush=True)
    path = Path(folder) / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(f"written: {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
