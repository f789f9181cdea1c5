"""`dynatok bench memory`: what a training rank takes of memory, against the sum of `doctor`.

Models of random weights in the shapes of 0.1, 0.5 and 1 billion parameters are trained for two
steps by `dynatok train`, as any model is, under ZeRO 2 or 3, with and without LoRA, on one rank or
two. Measured is the high-water mark of the largest rank (its own pages, watched from outside);
beside it stands the sum (`launch/memory_sum.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks._page import write_between
from launch.memory_sum import GB, Shape, learner_sum
from learner.config import LearnerConfig

SIZES: dict[str, dict[str, int]] = {
    "0.1B": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 26,
             "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 49152},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
           "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
}  # fmt: skip
LORA = {"r": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                    "down_proj"]}  # fmt: skip
EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
ROW_OF_8B = 4096
"""Tokens of its rows."""
STEPS = 2
TOKENS = (256, 8, 240, 1)
"""Static, slot and response tokens, and states, of each of two trajectories of a step."""


class MemoryRow(msgspec.Struct):
    """One setting."""

    size: str
    stage: int
    """Of ZeRO; 0: without DeepSpeed."""
    lora: bool
    ranks: int
    measured: float
    """Bytes of the largest rank."""
    summed: float
    tokens: int
    terms: dict[str, float]


def measure(size: str, stage: int, lora: bool, ranks: int, most: float) -> MemoryRow | str:
    """Run it; why not, where the sum is above `most` bytes for all ranks."""
    from transformers import LlamaConfig

    config = LlamaConfig(**SIZES[size], tie_word_embeddings=size == "0.1B")
    deepspeed: dict[str, Any] = {"zero_optimization": {"stage": stage}} if stage else {}
    settings = LearnerConfig(
        ranks=ranks,
        lora=LORA if lora else {},
        weight_transport="folder",  # nothing is published
        deepspeed=deepspeed,
    )
    tokens = sum(TOKENS[:3]) * 2 // ranks
    found = learner_sum(Shape.of(config), settings, tokens, deepspeed or None)
    if found.of(ranks=ranks) > most:
        what = "LoRA" if lora else "all"
        each = found.of() / GB
        return f"{size}, ZeRO {stage}, {what}, {ranks} ranks: {each:.1f} GB each by the sum"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model", config)
        _write_data(folder / "data.jsonl", config.vocab_size)
        written = {
            "model": str(folder / "model"),
            "data": str(folder / "data.jsonl"),
            "dir": str(folder),
            "ranks": ranks,
            "trajectories_per_step": 2,
            "objective": "sft",
            "lora": settings.lora,
            "training": {"max_steps": STEPS + 1, "save_strategy": "no"},
            "deepspeed": deepspeed,
        }
        (folder / "train.yaml").write_text(json.dumps(written))
        command = [sys.executable, "-m", "launch.cli", "train", str(folder / "train.yaml")]
        peak = _peak(command, folder)
    terms = {one.what: one.nbytes for one in found.terms}
    return MemoryRow(size, stage, lora, ranks, peak, found.of(), tokens, terms)


def _write_model(folder: Path, config: Any) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from dynatok_online.tiny import tokenizer

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for one in model.parameters():
        one.data.normal_(std=0.02)
    model.to(torch.bfloat16).save_pretrained(folder)  # half the disk; it is loaded as float32
    tokenizer.build().save_pretrained(folder)


def _write_data(path: Path, vocabulary: int) -> None:
    from benchmarks._edited_response import edited_response
    from dynatok_online.trajectory import to_row

    rows = [to_row(edited_response("exact", *TOKENS, vocabulary, seed)) for seed in range(4)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def _peak(command: list[str], folder: Path) -> float:
    """High-water mark of the largest process of training, in bytes, until `STEPS` are made. One
    more would follow, and then what merges and saves; it is ended before that."""
    peak, named = 0.0, "learner.offline"
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            done = _steps(folder) >= STEPS
            children = process.children(recursive=True)
            for one in children:
                try:
                    if any(named in word for word in one.cmdline()):
                        status = Path(f"/proc/{one.pid}/status").read_text()
                        peak = max(peak, 1024.0 * int(status.partition("VmHWM:")[2].split()[0]))
                except (psutil.Error, OSError, IndexError):
                    continue
            if done:
                for one in (process, *children):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait()
                return peak
            time.sleep(0.1)
        said.seek(0)
        last = said.read().decode().strip().splitlines()[-3:]
    raise RuntimeError(f"training ended with {process.returncode}: {' '.join(last)}")


def _steps(folder: Path) -> int:
    """How many the run in this folder has made."""
    return sum(path.read_text().count('"loss":') for path in folder.glob("train-*/metrics.jsonl"))


def table(rows: Sequence[MemoryRow]) -> list[str]:
    """Lines of Markdown."""
    head = ("parameters", "ZeRO", "trained", "ranks", "tokens", "measured, GB", "sum, GB", "ratio")
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * 8,
        *(
            f"| {one.size} | {one.stage or 'no DeepSpeed'} | {'LoRA, r 16' if one.lora else 'all'} "
            f"| {one.ranks} | {one.tokens} | {one.measured / GB:.2f} | {one.summed / GB:.2f} "
            f"| {one.summed / one.measured:.2f} |"
            for one in rows
        ),
    ]


def on_paper() -> list[str]:
    """The same sum for eight billion parameters, in bfloat16 on GPUs."""
    from transformers import LlamaConfig

    shape = Shape.of(LlamaConfig(**EIGHT_B))
    cpu = {"device": "cpu"}
    offloads: dict[str, dict[str, Any]] = {
        "none": {},
        "optimizer": {"offload_optimizer": cpu},
        "optimizer, weights": {"offload_optimizer": cpu, "offload_param": cpu},
    }
    lines = [
        "| trained | ZeRO | offload | ranks | device, GB each | host, GB each | host, GB once |",
        "|" + "---|" * 7,
    ]
    training = {"bf16": True, "gradient_checkpointing": True}
    for lora in (False, True):
        for stage in (2, 3):
            for name, offload in offloads.items():
                if stage == 2 and "offload_param" in offload:
                    continue  # DeepSpeed has it with ZeRO 3 only
                for ranks in (1, 4, 8):
                    settings = LearnerConfig(
                        ranks=ranks,
                        training=training,
                        lora=LORA if lora else {},
                        weight_sync="adapter" if lora else "merged",
                        weight_dtype="bfloat16",
                    )
                    zero = {"zero_optimization": {"stage": stage, **offload}}
                    found = learner_sum(shape, settings, ROW_OF_8B, zero)
                    once = sum(one.nbytes for one in found.terms if not one.per_rank)
                    lines.append(
                        f"| {'LoRA, adapters sent' if lora else 'all'} | {stage} | {name} "
                        f"| {ranks} | {found.of('device') / GB:.1f} "
                        f"| {(found.of('host') - once) / GB:.1f} | {once / GB:.1f} |"
                    )
    return lines


def main(arguments: list[str]) -> int:
    """The command line: a table for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(prog="dynatok bench memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--stages",
        nargs="+",
        type=int,
        choices=range(4),
        default=[2, 3],
        help="ZeRO; 0: without DeepSpeed",
    )
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--lora", choices=("with", "without", "both"), default="both")
    parser.add_argument(
        "--most", type=float, help="GB that all ranks may take by the sum (default: what is free)"
    )
    parser.add_argument("--raw", type=Path, help="keep rows in this file, and take them from there")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    options = parser.parse_args(arguments)
    rows = _read(options.raw)
    left_out = []
    for size in options.sizes:
        for lora in {"with": [True], "without": [False], "both": [True, False]}[options.lora]:
            for stage in options.stages:
                for ranks in options.ranks:
                    key = (size, stage, lora, ranks)
                    if key in {(one.size, one.stage, one.lora, one.ranks) for one in rows}:
                        continue
                    free = psutil.virtual_memory().available - 1.5 * GB
                    most = free if options.most is None else options.most * GB
                    found = measure(*key, most)
                    if isinstance(found, str):
                        left_out.append(found)
                        print(found, flush=True)
                        continue
                    rows.append(found)
                    print(table([found])[-1], flush=True)
                    if options.raw is not None:
                        with options.raw.open("ab") as file:
                            file.write(msgspec.json.encode(found) + b"\n")
    rows.sort(key=lambda one: (list(SIZES).index(one.size), not one.lora, one.stage, one.ranks))
    if options.page is not None:
        when = f"Measured {datetime.now(UTC).date()} on a CPU, float32."
        not_run = [f"Not run: {'; '.join(left_out)}."] if left_out else []
        write_between(options.page, "measured", [when, "", *table(rows), "", *not_run])
        write_between(options.page, "paper", on_paper())
    print(json.dumps({"results": msgspec.to_builtins(rows)}), flush=True)
    return 0


def _read(path: Path | None) -> list[MemoryRow]:
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=MemoryRow) for line in path.read_bytes().splitlines()]
