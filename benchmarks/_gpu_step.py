"""A step of the learner at the shape of a real model: the project's trainer, under DeepSpeed.

Every step is an optimizer step on the same batch, laid out method by method in turn, so that
whatever else the machine does hits all methods alike. The batch is planned and copied inside the
step's time or shown beside it; nothing is left out.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks._edited_response import edited_response
from benchmarks._gpu_report import Report, short
from benchmarks._gpu_shapes import SMALL, Shape, make
from benchmarks._kernel_times import OPTIMIZER, kernel_times
from benchmarks._step_cost import count_flops
from dynatok_online.rows.plan import plan_rows
from dynatok_online.trajectory import Trajectory
from learner.config import LearnerConfig

BATCH = (1024, 32, 512, 4)
"""static, slot, response, states of each trajectory."""
TRIAL = (40, 4, 24, 3)
"""Those of a trial without a GPU."""

TRAJECTORIES = 8

METHODS = {
    "exact": ("exact", "packed"),
    "sticky": ("sticky", "packed"),
    "truncated": ("exact", "truncated"),
    "snapshot": ("exact", "snapshot"),
}
"""Name -> how the responses were generated, and the strategy that lays them out."""

DATASHEET = 989e12
"""Dense bfloat16 FLOP/s of an H100 or H200 (SXM), from its datasheet."""

ROW_TOKENS = 16384

PROFILED = "profiled"


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step, as it was found."""

    seconds: float
    peak_bytes: int
    planned: float
    """Seconds that planning its rows took, before the step."""


class Clock(TrainerCallback):
    """Times every step by its place in `schedule`; profiles the one that says so."""

    def __init__(self, schedule: Sequence[str], ends: float, vocabulary: int) -> None:
        self.schedule, self.ends = schedule, ends
        self.found: dict[str, list[Step]] = {}
        self.kernels: dict[str, float] = {}
        self.trainer: Any = None
        self._vocabulary = vocabulary
        self._planned = 0.0
        self._profiler: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything before is over."""
        if self.schedule[state.global_step] == PROFILED:
            self._start_profiler()
        _synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._planned = self.trainer.timings["plan"]
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is over."""
        _synchronize()
        seconds = time.perf_counter() - self._began
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        planned = self.trainer.timings["plan"] - self._planned
        method = self.schedule[state.global_step - 1]
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self.kernels = kernel_times(self._profiler, self._vocabulary)
            self._profiler = None
        else:
            self.found.setdefault(method, []).append(Step(seconds, peak, planned))
        if time.monotonic() > self.ends:
            control.should_training_stop = True

    def _start_profiler(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        engine = getattr(self.trainer, "deepspeed", None)
        if engine is not None:
            engine.step = torch.profiler.record_function(OPTIMIZER)(engine.step)
        self._profiler.__enter__()


class Batches:
    """The trajectories of every step of a schedule, one after the other."""

    def __init__(self, schedule: Sequence[str], vocabulary: int, size: tuple[int, int, int, int]):
        self._schedule = [method.replace(PROFILED, "exact") for method in schedule]
        self._made = {
            method: [
                msgspec.structs.replace(
                    edited_response(METHODS[method][0], *size, vocabulary, seed),
                    trajectory_id=f"{method}-{seed}",
                )
                for seed in range(TRAJECTORIES)
            ]
            for method in dict.fromkeys(self._schedule)
        }

    def __iter__(self) -> Iterator[Trajectory]:
        for method in self._schedule:
            yield from self._made[method]

    def __getitem__(self, method: str) -> list[Trajectory]:
        return self._made[method]


def collate(items: Sequence[Trajectory]) -> dict[str, Any]:
    """By the strategy of the method whose batch it is."""
    from dynatok_online.training.collator import TrajectoryCollator

    method = items[0].trajectory_id.split("-")[0]
    return TrajectoryCollator(METHODS[method][1], ROW_TOKENS)(items)


def matmul_rate() -> float:
    """FLOP/s of an 8192 x 8192 x 8192 bfloat16 product on random data; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    times = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return 2 * 8192**3 / statistics.median(times)


def learner_step(
    report: Report,
    shape: Shape,
    schedule: Sequence[str],
    seconds: float,
    *,
    deepspeed: dict[str, Any],
    lora: dict[str, Any] | None = None,
    checkpointing: bool = True,
) -> bool:
    """Trains by `schedule` until `seconds` are over, and reports; whether every method ran.

    The first step of a method warms up and is not counted. Without a GPU, a small model on short
    texts.
    """
    from dynatok_online.training.trainer import DynamicSFTTrainer
    from learner.environment import compile_nothing
    from learner.training import lora_arguments, training_arguments

    ends = time.monotonic() + seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, size = (shape, BATCH) if device == "cuda" else (SMALL, TRIAL)
    static, slot, response, states = size
    what = f"{'LoRA' if lora else 'all weights'}, {_said(deepspeed)}"
    report.table(
        f"Learner step: {shape.name}, {what}",
        f"{TRAJECTORIES} trajectories of {static} static tokens, a slot of {slot}, {response} "
        f"response tokens, {states} states; rows of at most {ROW_TOKENS} tokens, AdamW, "
        f"{'' if checkpointing else 'no '}gradient checkpointing. FLOP/s count what the model "
        "needs, not what checkpointing computes again. In brackets the bound by FLOPs.",
        (
            *("method", "s per step", "of (n)", "planning s", "tokens", "loss tokens", "tokens/s"),
            *("loss tokens/s", "TFLOP/s", "of 989", "of matmul here", "peak GB"),
            *("against truncated", "against snapshot"),
        ),
    )
    rate = matmul_rate()
    if deepspeed:
        compile_nothing()
    # Without DeepSpeed the weights are the master copy, and autocast rounds them.
    half = bool(deepspeed) or bool(lora)
    dtype = torch.bfloat16 if half else torch.float32
    model = make(shape, device, dtype, checkpointing=checkpointing)
    batches = Batches(schedule, shape.vocabulary, size)
    measured = [method for method in dict.fromkeys(schedule) if method != PROFILED]
    rows = {
        method: plan_rows(batches[method], max_tokens=ROW_TOKENS, strategy=METHODS[method][1])
        for method in measured
    }
    flops = {method: _flops(rows[method], model, bool(lora)) for method in measured}
    clock = Clock(schedule, ends, shape.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            LearnerConfig(
                run_dir=folder,
                objective="sft",
                trajectories_per_step=TRAJECTORIES,
                training={
                    "max_steps": len(schedule),
                    "learning_rate": 1e-5,
                    "bf16": True,
                    "gradient_checkpointing": checkpointing,
                    "save_strategy": "no",
                    "max_row_tokens": ROW_TOKENS,
                    **({} if device == "cuda" else {"use_cpu": True, "ddp_backend": "gloo"}),
                },
                deepspeed=deepspeed,
            ),
            Path(folder),
        )
        trainer = DynamicSFTTrainer(
            model, arguments, batches, callbacks=[clock], **lora_arguments(lora or {})
        )
        trainer.data_collator = collate
        trainer.remove_callback(PrinterCallback)
        clock.trainer = trainer
        failed = ""
        try:
            trainer.train()
        except Exception as problem:  # what was measured until then is still worth a report
            failed = short(problem)
    medians = {
        method: statistics.median(one.seconds for one in steps[1:])
        for method, steps in clock.found.items()
        if len(steps) > 1
    }
    for method in measured:
        if method not in medians:
            report.row(method, f"not measured {failed}", *[""] * 12)
            continue
        steps, took = clock.found[method][1:], medians[method]
        tokens, targets = (
            sum(row.tokens for row in rows[method]),
            sum(len(row.targets) for row in rows[method]),
        )
        speed = flops[method] / took
        report.row(
            method,
            f"{took:.3f} ({min(s.seconds for s in steps):.3f}–{max(s.seconds for s in steps):.3f})",
            str(len(steps)),
            f"{statistics.median(one.planned for one in steps):.3f}",
            *(str(tokens), str(targets), f"{tokens / took:.0f}", f"{targets / took:.0f}"),
            f"{speed / 1e12:.1f}" if rate else f"{speed / 1e12:.4f}",
            f"{speed / DATASHEET:.1%}" if rate else "",
            f"{speed / rate:.1%}" if rate else "",
            f"{max(one.peak_bytes for one in steps) / 1e9:.1f}",
            *(_ratio(medians, flops, over, method) for over in ("truncated", "snapshot")),
        )
    if rate:
        report.write("", f"bfloat16 matmul of 8192³ on this card, in this run: {rate / 1e12:.0f}")
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    logits = (
        4 * shape.vocabulary * max(len(row.targets) for found in rows.values() for row in found)
    )
    report.write(
        "",
        f"Loss from {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps. "
        if losses
        else "No step ended. ",
        f"Weights in {str(next(model.parameters()).dtype).removeprefix('torch.')}, rotary "
        f"frequencies in {_rotary(model)}; float32 logits of the longest row: "
        f"{logits / 1e9:.2f} GB.",
    )
    if failed:
        report.write("", f"Training broke off: {failed}")
    if any(clock.kernels.values()) and "exact" in medians:
        _profile(report, clock.kernels, medians["exact"])
    return not failed and all(method in medians for method in measured)


def _flops(rows: Sequence[Any], model: Any, lora: bool) -> float:
    """Of one step. Frozen weights need no gradients of their own: 4 instead of 6 per weight."""
    found = count_flops(rows, model)
    return (found.linear + found.logits) * (2 / 3 if lora else 1) + found.pairs


def _ratio(medians: dict[str, float], flops: dict[str, float], over: str, method: str) -> str:
    if over not in medians:
        return ""
    return f"{medians[over] / medians[method]:.2f} ({flops[over] / flops[method]:.2f})"


def _said(deepspeed: dict[str, Any]) -> str:
    if not deepspeed:
        return "without DeepSpeed (autocast)"
    terms = [name for name, on in deepspeed.get("bf16", {}).items() if on is True]
    stage = f"DeepSpeed ZeRO {deepspeed['zero_optimization']['stage']}"
    return f"{stage} ({', '.join(terms)})" if terms else stage


def _rotary(model: Any) -> str:
    found = {
        str(b.dtype).removeprefix("torch.") for n, b in model.named_buffers() if "inv_freq" in n
    }
    return ", ".join(sorted(found)) or "?"


def _profile(report: Report, kernels: dict[str, float], seconds: float) -> None:
    busy = sum(kernels.values())
    report.table(
        "Where one exact step goes",
        f"Kernels of a profiled step against {seconds * 1e3:.0f} ms, the median of the others.",
        ("kernels", "ms", "share of the step"),
    )
    for name, ms in [*kernels.items(), ("no kernel", max(0.0, seconds * 1e3 - busy))]:
        report.row(name, f"{ms:.1f}", f"{ms / seconds / 1e3:.1%}")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
