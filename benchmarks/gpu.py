"""`dynatok bench gpu`: exactness and speed on this machine's GPU, as a Markdown report.

Part by part, each in a process of its own and within its share of the time, the most important
first: one that crashes, hangs or runs out of time loses nothing of the others, and every line is
in the report as soon as it is known. Without a GPU every part is a small trial on the CPU.

Exactness is measured against one plain forward per pass through transformers' own attention, in
float64. Beside each stands the error of a baseline (one truncated pass per state through `dense`)
at the same precision: what rounding alone costs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._gpu_report import Report, short

PARTS = {
    "exactness": (50, "dense and concat against plain forwards; packed against truncated"),
    "step": (75, "a learner step at the shape of Qwen3-0.6B, and where its time goes"),
    "large": (75, "a learner step at the shape of Qwen3-8B with LoRA"),
    "pack": (60, "what each way to lay out an edited response costs"),
    "full": (60, "a learner step at the shape of Qwen3-8B, all weights, where the GPU holds them"),
    "flex": (130, "FlexAttention against plain forwards, and over KV of other states"),
    "stored": (60, "a learner step at the shape of Qwen3-0.6B, without gradient checkpointing"),
}
"""Name -> seconds at most, and what it is; the most important first."""

ZERO = {"zero_optimization": {"stage": 2}}
"""What the project's own configurations give DeepSpeed."""

IN_BF16 = {
    **ZERO,
    "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
}
"""No float32 copies: 10 bytes a weight instead of 18."""

FULL_NEEDS_GB = 115

LEAST_SECONDS = 10
"""A part is not started with less."""


def exactness(report: Report, device: str, seconds: float) -> bool:
    """Dense and concat."""
    from benchmarks._gpu_exactness import against_oracle, against_truncated, of_every_reuse

    well = against_oracle(report, device, ("dense", "concat"), seconds)
    well = of_every_reuse(report, device, ("concat",), seconds / 4) and well
    return against_truncated(report, device) and well


def flex(report: Report, device: str, seconds: float) -> bool:
    """The attention that has to be compiled."""
    from benchmarks._gpu_exactness import against_oracle, of_every_reuse

    ends = time.monotonic() + seconds - 15
    well = against_oracle(report, device, ("flex",), seconds - 15)
    return of_every_reuse(report, device, ("flex",), ends - time.monotonic()) and well


def stored(report: Report, device: str, seconds: float) -> bool:
    """Every activation is kept, none computed again."""
    from benchmarks._gpu_shapes import QWEN3_06B
    from benchmarks._gpu_step import METHODS, learner_step

    schedule = [*METHODS] * (6 if device == "cuda" else 2)
    return learner_step(
        report, QWEN3_06B, schedule, seconds - 12, deepspeed=ZERO, checkpointing=False
    )


def step(report: Report, device: str, seconds: float) -> bool:
    """Every method in turn, with a profile; once more without DeepSpeed where that fails."""
    from benchmarks._gpu_shapes import QWEN3_06B
    from benchmarks._gpu_step import METHODS, PROFILED, learner_step

    ends = time.monotonic() + seconds
    rounds = [*METHODS] * (7 if device == "cuda" else 2)
    schedule = [*rounds[: 2 * len(METHODS)], PROFILED, *rounds[2 * len(METHODS) :]]
    left = ends - time.monotonic() - 12
    try:
        well = learner_step(report, QWEN3_06B, schedule, left, deepspeed=ZERO)
    except ImportError:
        raise
    except Exception as problem:  # without it there is something to learn, too
        traceback.print_exc()
        report.write("", f"Under DeepSpeed: {short(problem)}")
        well = False
    left = ends - time.monotonic() - 12
    if not well and left > 15:
        learner_step(report, QWEN3_06B, schedule, left, deepspeed={})
    return well


def large(report: Report, device: str, seconds: float) -> bool:
    """Adapters on frozen bfloat16 weights: fits 80 GB."""
    from benchmarks._gpu_shapes import QWEN3_8B
    from benchmarks._gpu_step import learner_step

    schedule = [*["exact", "sticky"] * 6, *["truncated"] * 2]
    return learner_step(
        report,
        QWEN3_8B,
        schedule if device == "cuda" else schedule[:4],
        seconds - 12,
        deepspeed=ZERO,
        lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    )


def full(report: Report, device: str, seconds: float) -> bool:
    """All weights, with weights, gradients and AdamW's states in bfloat16."""
    import torch

    from benchmarks._gpu_shapes import QWEN3_8B
    from benchmarks._gpu_step import learner_step

    if device == "cuda":
        has = torch.cuda.get_device_properties(0).total_memory / 1e9
        if has < FULL_NEEDS_GB:
            report.write("", f"All weights of Qwen3-8B: left out, {has:.0f} GB do not hold them.")
            return True
    schedule = ["exact", "sticky"] * (6 if device == "cuda" else 2)
    return learner_step(report, QWEN3_8B, schedule, seconds - 12, deepspeed=IN_BF16)


def pack(report: Report, device: str, seconds: float) -> bool:
    """`dynatok bench pack` at a larger size."""
    import torch

    from benchmarks._gpu_exactness import qwen3
    from benchmarks.pack import DEFAULT_SHAPES, measure
    from dynatok_online import attention

    ends = time.monotonic() + seconds
    if device == "cuda":
        model, what = qwen3(1024, 16, 32768), "Qwen3, width 1024, 16 layers, bfloat16"
        shapes: Sequence[Any] = (*DEFAULT_SHAPES, (4096, 64, 2048, 8))
        model, rounds = model.to(device=device, dtype=torch.bfloat16), 7
    else:
        model, what = qwen3(128, 2, 512), "Qwen3, width 128, 2 layers, float32 (no GPU: a trial)"
        shapes, rounds = [(32, 4, 32, 4)], 1
    attention.prepare(model.train(), "concat")
    overs = ("snapshot", "truncated", "static")
    report.table(
        f"`pack`: {what}",
        "Speed against each baseline, in brackets the bound by FLOPs.",
        (
            *("static, slot, response, states", "method", "ms", "tokens", "peak MB"),
            *(f"against {over}" for over in overs),
        ),
    )
    well = True
    for shape in shapes:
        name = ", ".join(map(str, shape))
        if time.monotonic() > ends - 15 and device == "cuda":
            report.row(name, "left out: no time", *[""] * 6)
            continue
        try:
            rows = measure(shape, model, rounds, 32768)
        except Exception as problem:  # such as no memory for this one
            report.row(name, f"failed: {short(problem)}", *[""] * 6)
            well = False
            continue
        for row in rows:
            report.row(
                name,
                row["strategy"],
                f"{row['seconds'] * 1e3:.1f}",
                str(row["tokens"]),
                "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
                *(f"{row[f'speedup_vs_{o}']:.2f} ({row[f'bound_vs_{o}']:.2f})" for o in overs),
            )
    return well


def run_part(name: str, report: Report, seconds: float) -> int:
    """One part, in this process; 0 where all of it was as it should be."""
    try:
        from learner.environment import set_environment

        set_environment(distributed=True)
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return 0 if RUN[name](report, device, seconds) else 1
    except ImportError as error:
        report.write("", f"Part {name} is left out: {error}; install it, or choose other --parts.")
    except Exception as problem:
        traceback.print_exc()
        report.write("", f"Part {name} failed: {short(problem)}")
    return 1


RUN: dict[str, Callable[[Report, str, float], bool]] = {
    one.__name__: one for one in (exactness, step, large, pack, full, flex, stored)
}


def run_all(folder: Path, parts: Sequence[str], seconds: float) -> int:
    """Part after part; 0 where all were as they should be."""
    ends = time.monotonic() + seconds
    path = folder / "report.md"
    path.unlink(missing_ok=True)
    report = Report(path)
    report.write(*_head())
    results = {}
    for name in parts:
        began = time.monotonic()
        most = min(PARTS[name][0], ends - began)
        if most < LEAST_SECONDS:
            results[name] = "left out: no time"
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", str(folder), "--part", name]
        try:
            code = subprocess.run(
                [*command, "--seconds", f"{most - 3:.0f}"], timeout=most, check=False
            ).returncode
            results[name] = {0: "well", 1: "NOT WELL"}.get(code, f"DIED ({code})")
        except subprocess.TimeoutExpired:
            results[name] = f"STOPPED after {most:.0f} s"
        results[name] += f", {time.monotonic() - began:.0f} s"
    report.table("Parts", "", ("part", "what", "result"))
    for name, result in results.items():
        report.row(name, PARTS[name][1], result)
    print(f"written: {path}")
    return int(not all(result.startswith("well") for result in results.values()))


def _head() -> list[str]:
    import platform

    import torch
    import transformers

    gpu = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
    return [
        "# Exactness and speed on a GPU" if gpu else "# A trial without a GPU",
        "",
        f"{datetime.date.today()}, {hardware}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, `bash benchmarks/gpu.sh`",
    ]


def main(argv: Sequence[str]) -> int:
    """`dynatok bench gpu [FOLDER] [--parts ...] [--seconds S]`"""
    parser = argparse.ArgumentParser(
        prog="dynatok bench gpu",
        description="Exactness and speed on this machine's GPU, as a Markdown report. Without one, "
        "a small trial on the CPU.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n"
        + "".join(f"  {name:<10} {what} ({most} s)\n" for name, (most, what) in PARTS.items())
        + "\nexample: dynatok bench gpu runs/gpu --parts exactness step",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="of the report (default: runs/gpu-DATE)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=540, help="in all (default: 540)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    folder = given.folder or Path(f"runs/gpu-{datetime.date.today()}")
    if given.part:
        return run_part(given.part, Report(folder / "report.md"), given.seconds)
    return run_all(folder, given.parts, given.seconds)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Libraries' threads and process groups may take long to end, and have nothing more to say.
    sys.stdout.flush()
    os._exit(code)
