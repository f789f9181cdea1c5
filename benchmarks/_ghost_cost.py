"""What ghosts add to a training step: the share of its time, and of its tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import _page
from benchmarks._edited_response import edited_response
from dynatok_online import attention
from dynatok_online.adherence.measures import interval
from dynatok_online.rows.plan import plan_rows
from dynatok_online.rows.row import Row
from dynatok_online.training.chunk import Chunk
from dynatok_online.training.ghosts import Shared
from dynatok_online.training.head import ChunkedHead

HEADING = "## Ghosts"

SHAPES = ((64, 16, 256, 4), (256, 32, 512, 8))
"""Static, slot, response, states: few and many edits."""


def measure_ghosts(
    shapes: Sequence[tuple[int, int, int, int]], model: Any, rounds: int, max_tokens: int
) -> list[dict[str, Any]]:
    """One result per shape and policy. Every round times a step without ghosts and one with, one
    right after the other, in turns first; shares are over rounds."""
    found = []
    for shape in shapes:
        for policy in ("exact", "sticky"):
            one = edited_response(policy, *shape, model.config.vocab_size)
            budget = max(max_tokens, sum(shape[:3]))
            (row,) = plan_rows([one], max_tokens=budget, ghosts=True)
            assert row.ghosts is not None
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for ghosts in (False, True):
                _step(model, row, ghosts)
            for i in range(rounds):
                for ghosts in (bool(i % 2), not i % 2):
                    seconds[ghosts].append(_step(model, row, ghosts))
            more = [b / a - 1 for a, b in zip(seconds[False], seconds[True], strict=True)]
            tokens = row.ghosts.row.tokens
            found.append(
                {
                    "shape": list(shape),
                    "policy": policy,
                    "tokens": row.tokens,
                    "ghost_tokens": tokens,
                    "of_tokens": tokens / row.tokens,
                    # A step runs every token forward, and backward at twice that cost.
                    "bound": (tokens + row.ghosts.row.pairs / 6144)
                    / (3 * (row.tokens + row.pairs / 6144)),
                    "more_time": statistics.median(more),
                    "more_time_half": interval(more).half if rounds > 1 else None,
                    "rounds": rounds,
                }
            )
    return found


def _step(model: Any, row: Row, ghosts: bool) -> float:
    """Seconds of a forward and backward, with ghosts between them. On a CPU those of this process,
    so that what else runs on the machine hardly counts."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    model.zero_grad(set_to_none=True)
    began = clock()
    head = ChunkedHead(model)
    targets = attention.to_device(row.targets, model.device, torch.long)
    shared = Shared(model, head, row) if ghosts else None
    layout = attention.Layout(row) if shared is None else shared.layout

    def losses(logits: Chunk, piece: slice) -> torch.Tensor:
        nll = -logits.log_prob(targets[piece])
        if shared is None:
            return nll
        delta = -nll.detach() - shared.found[piece]
        return nll * torch.where(delta.isnan(), 1.0, delta.exp().clamp(max=5))

    given = attention.inputs(row, model.device, layout)
    with shared or nullcontext():
        loss, _ = head.run(lambda: model(**given, use_cache=False), losses)
    loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return clock() - began


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| S, D, R, K | reuse | tokens | ghost tokens | share of tokens | bound | more time |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        half = one["more_time_half"]
        lines.append(
            f"| {', '.join(map(str, one['shape']))} | {one['policy']} | {one['tokens']} | "
            f"{one['ghost_tokens']} | {one['of_tokens']:.1%} | {one['bound']:.1%} | "
            f"{one['more_time']:.1%}{'' if half is None else f' ± {half:.1%}'} |"
        )
    return lines


def write_section(path: Path, found: Sequence[dict[str, Any]], machine: str) -> None:
    """Put the section into a page, in the place of the one that is there."""
    section = [
        "`dynatok bench pack --ghosts --page docs/benchmarks/pack.md` "
        f"({machine}). A ghost is every token after an edit once more, on the KV of the prompt "
        "before the edit, forward only: it tells what the token owes to the edit "
        "(`dynatok_online/spans/ghosts.py`). A step without ghosts and one with them take turns in "
        "one run (on a CPU: CPU time of one thread); medians of their ratios over "
        f"{found[0]['rounds']} rounds, and 95 % intervals of the mean. Bound: FLOPs of the ghosts' "
        "forward against the step's forward and backward.",
        "",
        *table(found),
    ]
    _page.write_section(path, HEADING, section)
