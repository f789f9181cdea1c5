"""`dynatok bench pack`: what training on an edited response costs, method by method.

One response of R tokens under K states of a slot of D tokens, after S static tokens. One
interleaved run times a forward and backward of each method on one model: every round runs every
method once, and ratios are medians over rounds of times of the same round, so that whatever else
the machine does hits all of them alike. All methods use the same kernels and compute logits at
loss positions only.

Beside each measured ratio stands its bound: the ratio of FLOPs of linear layers, logits at loss
positions and attention pairs. Prints a card for people, then one line of JSON for machines.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dynatok_online.plan import Row, plan_rows
from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory

DEFAULT_SHAPES = (
    (256, 32, 512, 8),
    (1024, 32, 512, 8),
    (2048, 32, 512, 4),
    (64, 16, 256, 4),
    (512, 32, 1024, 8),
)
"""(static, slot, response, states)"""

METHODS = ("snapshot", "truncated", "exact", "sticky", "static")


def edited_response(
    policy: str, static: int, slot: int, response: int, states: int, vocabulary: int, seed: int = 0
) -> Trajectory:
    """A response in equal segments, each under its own state of a slot before it."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    edges = np.linspace(0, response, states + 1).astype(int).tolist()
    head = static + slot
    passes = []
    for k, (start, stop) in enumerate(pairwise(edges)):
        reuse = [Reuse(0, 0, static)] if k and static else []
        if policy == "sticky":
            # The last token of a segment gets its KV in the next pass.
            ends = [head, *(head + edge - 1 for edge in edges[1:])]
            reuse += [Reuse(o, ends[o], ends[o + 1]) for o in range(k) if ends[o] < ends[o + 1]]
        passes.append(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={"slot": str(k)},
                start=start,
                stop=stop,
                num_cached_tokens=sum(run.stop - run.start for run in reuse),
                reuse=tuple(reuse),
            )
        )
    pieces = (words(static), *(words(slot) for _ in range(states)))
    # Every state differs in its first token, or prefixes of states would be shared by chance.
    for k, piece in enumerate(pieces[1:]):
        piece[:1] = k
    return Trajectory(
        trajectory_id=policy,
        pieces=pieces,
        response=words(response),
        logprobs=np.zeros(response, np.float32),
        passes=tuple(passes),
        policy=policy,
    )


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


def small_model() -> Any:
    """A Qwen3 of 5.8 million parameters with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        )
    )


def load(model: str, device: str, dtype: str) -> Any:
    """`small`, or whatever transformers can load, prepared for rows of spans."""
    import torch

    from dynatok_online import attention

    if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this torch sees no GPU; use device cpu")
    if model == "small":
        loaded = small_model()
    else:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded = loaded.to(device=device, dtype=getattr(torch, dtype)).train()
    attention.prepare(loaded, "concat")
    return loaded


def step(model: Any, rows: Sequence[Row]) -> float:
    """Forward and backward of all rows; seconds."""
    import torch
    import torch.nn.functional as F

    from dynatok_online import attention

    model.zero_grad(set_to_none=True)
    device = model.device
    count = sum(len(row.targets) for row in rows)
    _synchronize(device)
    began = time.perf_counter()
    for row in rows:
        logits = model(**attention.inputs(row, device), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets, dtype=torch.long, device=device)
        (F.cross_entropy(logits.float(), targets, reduction="sum") / count).backward()
    _synchronize(device)
    return time.perf_counter() - began


def measure(
    shape: tuple[int, int, int, int], model: Any, rounds: int, max_tokens: int
) -> list[dict[str, Any]]:
    """One row of results per method."""
    static, slot, response, states = shape
    vocabulary = model.config.vocab_size
    exact = [edited_response("exact", *shape, vocabulary)]
    sticky = [edited_response("sticky", *shape, vocabulary)]
    longest = max(max_tokens, static + slot + response)
    plans = {
        method: plan_rows(
            sticky if method == "sticky" else exact,
            max_tokens=longest,
            strategy="packed" if method in ("exact", "sticky") else method,
        )
        for method in METHODS
    }
    flops = {method: count_flops(rows, model) for method, rows in plans.items()}
    peaks = {}
    for method, rows in plans.items():
        step(model, rows)  # warm up: memory from the system, threads
        peaks[method] = _peak_mb(model, rows)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method, rows in plans.items():
            seconds[method].append(step(model, rows))

    def speedup(over: str, method: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[over], seconds[method], strict=True))

    return [
        {
            "static": static,
            "slot": slot,
            "response": response,
            "states": states,
            "strategy": method,
            "seconds": round(statistics.median(seconds[method]), 5),
            "tokens": sum(row.tokens for row in rows),
            "gflops_linear": round(flops[method].linear / 1e9, 3),
            "gflops_logits": round(flops[method].logits / 1e9, 3),
            "gflops_pairs": round(flops[method].pairs / 1e9, 3),
            **{
                f"{what}_vs_{over}": round(value, 4)
                for over in ("snapshot", "truncated", "static")
                for what, value in (
                    ("bound", flops[over].total / flops[method].total),
                    ("speedup", speedup(over, method)),
                )
            },
            "peak_mb": peaks[method],
        }
        for method, rows in plans.items()
    ]


def run(
    static: int | None = None,
    slot: int = 32,
    response: int = 512,
    states: int = 8,
    model: str = "small",
    device: str = "cpu",
    dtype: str = "float32",
    rounds: int = 7,
    max_tokens: int = 16384,
) -> list[dict[str, Any]]:
    """Measures one shape (where `static` is given) or the default table; prints card and JSON."""
    shapes = DEFAULT_SHAPES if static is None else ((static, slot, response, states),)
    for shape in shapes:
        if shape[0] + shape[1] < 1 or min(shape[2:]) < 1 or min(shape) < 0 or shape[3] > shape[2]:
            raise ValueError(
                f"shape {shape} is impossible: (static, slot, response, states) needs a prompt "
                "and at least one token per state"
            )
    loaded = load(model, device, dtype)
    results: list[dict[str, Any]] = []
    for shape in shapes:
        found = measure(shape, loaded, rounds, max_tokens)
        _print_card(shape, found)
        results += found
    print(json.dumps(results))
    return results


def _print_card(shape: tuple[int, int, int, int], rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "static {} · slot {} · response {} · states {}".format(*shape)
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("method")
    for name in ("ms", "tokens", "GFLOP linear + logits + pairs"):
        table.add_column(name, justify="right")
    for over in ("snapshot", "truncated", "static"):
        table.add_column(f"× {over}\nbound · found · share", justify="right")
    table.add_column("peak MB", justify="right")
    for row in rows:
        cells = []
        for over in ("snapshot", "truncated", "static"):
            bound, found = row[f"bound_vs_{over}"], row[f"speedup_vs_{over}"]
            cells.append(f"{bound:.2f} · {found:.2f} · {found / bound:.2f}")
        table.add_row(
            row["strategy"],
            f"{row['seconds'] * 1e3:.1f}",
            str(row["tokens"]),
            " + ".join(f"{row[f'gflops_{part}']:.1f}" for part in ("linear", "logits", "pairs")),
            *cells,
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        )
    Console().print(table)


def _synchronize(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _peak_mb(model: Any, rows: Sequence[Row]) -> float | None:
    """Peak memory of one step beyond what was in use before it; None where nobody tells."""
    gc.collect()
    if model.device.type == "cuda":
        import torch

        model.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, rows)
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    model.zero_grad(set_to_none=True)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step(model, rows)
        return (_status("VmHWM") - before) / 1024
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    """KiB of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0])


def main(argv: Sequence[str]) -> int:
    """`dynatok bench pack [--static S --slot D --response R --states K] ...`"""
    parser = argparse.ArgumentParser(
        prog="dynatok bench pack",
        description="What training on an edited response costs, method by method.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--static", type=int, help="static tokens; left out: a table of shapes")
    parser.add_argument("--slot", type=int, default=32, help="tokens of the slot")
    parser.add_argument("--response", type=int, default=512, help="tokens of the response")
    parser.add_argument("--states", type=int, default=8, help="states of the slot")
    parser.add_argument("--model", default="small", help="small, or a path or hub id")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="how often every method is timed")
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens per row")
    try:
        run(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
