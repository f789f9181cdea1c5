"""What the loss of a row costs: all logits at once, as it was, against some at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import _page
from benchmarks._step_cost import peak_of
from dynatok_online import attention
from dynatok_online.rows.row import Row
from dynatok_online.training.chunk import Chunk
from dynatok_online.training.head import ChunkedHead, ChunkLoss

HEADING = "## The loss"

WAYS = ("all logits", "in chunks", "in chunks, whole logits")
"""The last: of a loss that asks for more than log p (here it does not, so that all are equal)."""


def only_a_head(vocabulary: int, width: int) -> Any:
    """A model with next to nothing below its head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
            tie_word_embeddings=False,
        )
    ).train()
    model.get_input_embeddings().requires_grad_(False)  # its gradient is none of the loss's
    attention.prepare(model)
    return model


def row_of(targets: int, vocabulary: int) -> Row:
    """A row of which every token is followed by a target, in spans that nobody else sees."""
    rng = np.random.default_rng(0)
    spans = np.arange(0, targets + 1, 64)
    if spans[-1] < targets:
        spans = np.append(spans, targets)
    ids = rng.integers(0, vocabulary, targets).astype(np.int32)
    none = np.full(targets, -1)
    return Row(
        input_ids=ids,
        position_ids=np.arange(targets, dtype=np.int32) % 64,
        bounds=spans,
        visible=np.eye(len(spans) - 1, dtype=bool),
        loss_positions=np.arange(targets),
        targets=rng.integers(0, vocabulary, targets).astype(np.int32),
        weights=np.ones(targets, np.float32),
        logprobs=np.zeros(targets, np.float32),
        versions=none,
        trajectory=none,
        response_index=none,
    )


def measure_loss(vocabulary: int, width: int, targets: int, rounds: int) -> list[dict[str, Any]]:
    """Peak memory of each way, and its seconds; the ways take turns."""
    model, row = only_a_head(vocabulary, width), row_of(targets, vocabulary)
    ids = torch.as_tensor(row.targets, dtype=torch.long)

    def call() -> Any:
        return model(**attention.inputs(row, "cpu"), use_cache=False)

    def at_once() -> None:
        logits = call().logits[0]
        nll = F.cross_entropy(logits, ids, reduction="none")
        (nll.sum() / targets).backward()

    def in_chunks(loss_of: ChunkLoss) -> Callable[[], None]:
        def step() -> None:
            loss, _ = ChunkedHead(model).run(call, loss_of)
            (loss / targets).backward()

        return step

    def of_logits(chunk: Chunk, piece: slice) -> torch.Tensor:
        return F.cross_entropy(chunk.whole, ids[piece], reduction="none")

    ways = (
        at_once,
        in_chunks(lambda chunk, piece: -chunk.log_prob(ids[piece])),
        in_chunks(of_logits),
    )
    steps = dict(zip(WAYS, ways, strict=True))
    peaks = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:  # and so warm up
        model.zero_grad(set_to_none=True)
        peaks[way] = peak_of(steps[way], "cpu")
    for _ in range(rounds):
        for way in WAYS:
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            steps[way]()
            seconds[way].append(time.perf_counter() - began)
    ratios = {
        way: [a / b for a, b in zip(seconds[way], seconds[WAYS[0]], strict=True)] for way in WAYS
    }
    return [
        {
            "way": way,
            "vocabulary": vocabulary,
            "width": width,
            "targets": targets,
            "peak_mb": peaks[way],
            "seconds": statistics.median(seconds[way]),
            "rounds": rounds,
            "time_ratio": statistics.median(ratios[way]),
            "ratios": ratios[way],
        }
        for way in WAYS
    ]


def table(found: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| loss | peak MB | of before | seconds | of before |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        before = found[0]["peak_mb"]
        peak = "?" if one["peak_mb"] is None else f"{one['peak_mb']:.0f}"
        share = "?" if not before or one["peak_mb"] is None else f"{one['peak_mb'] / before:.3f}"
        lines.append(
            f"| {one['way']} | {peak} | {share} | {one['seconds']:.1f} | {one['time_ratio']:.2f} |"
        )
    return lines


def write_section(path: Path, found: list[dict[str, Any]], machine: str) -> None:
    """Put the section into a page, in the place of the one that is there."""
    one = found[1]
    spread = ", ".join(f"{ratio:.2f}" for ratio in one["ratios"])
    section = [
        f"`dynatok bench pack --loss --page docs/benchmarks/pack.md` ({machine}). A head of "
        f"{one['vocabulary']:,} words and width {one['width']}, as Qwen3-0.6B's, "
        f"{one['targets']:,} loss tokens, forward and backward. All logits at once is how the loss "
        "was computed before (`[M, V]`, and as much again for each step of its gradient); in "
        "chunks is "
        "`dynatok_online/training/head.py`. Peaks are the process's high-water mark beyond the "
        f"weights, the head's gradient ({one['vocabulary'] * one['width'] * 4 / 2**20:.0f} MB) "
        f"included in all. The ways took turns in {one['rounds']} rounds; ratios of the second "
        f"to the first: {spread}. The third is what losses take that ask for more than log p.",
        "",
        *table(found),
    ]
    _page.write_section(path, HEADING, section)
