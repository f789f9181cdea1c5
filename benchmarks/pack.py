"""`dynatok bench pack`: what training on an edited response costs, method by method.

One response of R tokens under K states of a slot of D tokens, after S static tokens. One
interleaved run times a forward and backward of each method on one model: every round runs every
method once, and ratios are medians over rounds of times of the same round, so that whatever else
the machine does hits all of them alike. All methods use the same kernels and compute logits at
loss positions only.

Beside each measured ratio stands its bound: the ratio of FLOPs of linear layers, logits at loss
positions and attention pairs. `exact, by pass` is `exact` in parts that bound its memory (see
`dynatok_online.rows.parts`). Prints a card for people, then one line of JSON for machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._edited_response import edited_response
from dynatok_online.rows.plan import plan_rows

DEFAULT_SHAPES = (
    (256, 32, 512, 8),
    (1024, 32, 512, 8),
    (2048, 32, 512, 4),
    (64, 16, 256, 4),
    (512, 32, 1024, 8),
)
"""(static, slot, response, states)"""

METHODS = {
    "snapshot": ("exact", "snapshot"),
    "truncated": ("exact", "truncated"),
    "exact": ("exact", "packed"),
    "exact_by_pass": ("exact", "packed"),
    "sticky": ("sticky", "packed"),
    "static": ("exact", "static"),
}
"""Name -> how the response was generated, and the strategy that lays it out."""


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


def measure(
    shape: tuple[int, int, int, int],
    model: Any,
    rounds: int,
    max_tokens: int,
    profiled: bool = False,
) -> list[dict[str, Any]]:
    """One row of results per method."""
    from benchmarks._step_cost import count_flops, peak_mb, profile, step
    from dynatok_online.rows.parts import Part, cut_row

    static, slot, response, states = shape
    longest = max(max_tokens, static + slot + response)
    plans = {}
    for method, (policy, strategy) in METHODS.items():
        many = [edited_response(policy, *shape, model.config.vocab_size)]
        plans[method] = plan_rows(many, max_tokens=longest, strategy=strategy)
    flops = {method: count_flops(rows, model) for method, rows in plans.items()}
    parts = {
        method: [
            part
            for row in rows
            for part in (cut_row(row) if method == "exact_by_pass" else [Part(row)])
        ]
        for method, rows in plans.items()
    }
    peaks = {}
    for method in METHODS:
        step(model, parts[method])  # warm up
        peaks[method] = peak_mb(model, parts[method])
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            seconds[method].append(step(model, parts[method]))

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
            **({"profile_ms": profile(model, parts[method])} if profiled else {}),
        }
        for method, rows in plans.items()
    ]


def time_planning(model: Any) -> dict[str, float]:
    """Seconds to plan a row of 16384 tokens from 64 trajectories, and to run it forward."""
    import torch

    from dynatok_online import attention
    from dynatok_online.attention.tiles import cut_tiles

    vocabulary = model.config.vocab_size
    many = [edited_response("exact", 28, 8, 80, 4, vocabulary, seed) for seed in range(64)]
    planning, forward = [], []
    for _ in range(3):
        began = time.perf_counter()
        (row,) = plan_rows(many, max_tokens=16384)
        cut_tiles(attention.Layout(row), None)
        planning.append(time.perf_counter() - began)
        began = time.perf_counter()
        with torch.no_grad():
            model(**attention.inputs(row, model.device), use_cache=False).logits.sum().item()
        forward.append(time.perf_counter() - began)
    return {
        "plan_16k_seconds": round(statistics.median(planning), 5),
        "forward_16k_seconds": round(statistics.median(forward), 5),
    }


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
    profiled: bool = False,
    planning: bool = True,
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
        found = measure(shape, loaded, rounds, max_tokens, profiled)
        _print_card(shape, found)
        results += found
    if planning:
        times = time_planning(loaded)
        for row in results:
            row.update(times)
        plan, forward = times["plan_16k_seconds"], times["forward_16k_seconds"]
        print(
            f"planning 64 trajectories (16384 tokens) takes {plan * 1e3:.0f} ms, "
            f"{plan / forward:.1%} of their forward\n"
        )
    print(json.dumps(results))
    return results


def run_ghosts(
    page: Path | None,
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
    """What ghosts add to a step, by shape and policy; prints a table and JSON."""
    import torch

    from benchmarks._ghost_cost import SHAPES, measure_ghosts, table, write_section

    if device == "cpu":
        torch.set_num_threads(1)
    shapes = SHAPES if static is None else ((static, slot, response, states),)
    found = measure_ghosts(shapes, load(model, device, dtype), rounds, max_tokens)
    print("\n".join(table(found)))
    if page is not None:
        where = f"model {model}, {device}, {dtype}, torch {torch.__version__}"
        write_section(page, found, f"{where}, {datetime.now(UTC).date().isoformat()}")
    print(json.dumps(found))
    return found


def run_loss(
    page: Path | None = None,
    vocabulary: int = 151_936,
    width: int = 1024,
    targets: int = 4096,
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """What the loss of a row costs, before and now; prints a table and JSON."""
    import torch

    from benchmarks._loss_cost import measure_loss, table, write_section

    found = measure_loss(vocabulary, width, targets, rounds)
    print("\n".join(table(found)))
    if page is not None:
        threads = torch.get_num_threads()
        where = f"CPU, {threads} threads, float32, torch {torch.__version__}"
        write_section(page, found, f"{where}, {datetime.now(UTC).date().isoformat()}")
    print(json.dumps(found))
    return found


def _print_card(shape: tuple[int, int, int, int], rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = "static {} · slot {} · response {} · states {}".format(*shape)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("method", no_wrap=True)
    for name in ("ms", "tokens", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("speed /\nsnapshot", "speed /\ntruncated", "time /\nstatic"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            f"{row[f'speedup_vs_{over}']:.2f} ({row[f'bound_vs_{over}']:.2f})"
            for over in ("snapshot", "truncated")
        ]
        cells.append(f"{1 / row['speedup_vs_static']:.2f} ({1 / row['bound_vs_static']:.2f})")
        table.add_row(
            row["strategy"].replace("_by_", ", by "),
            f"{row['seconds'] * 1e3:.0f}",
            str(row["tokens"]),
            "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            *cells,
        )
    console.print(table)
    exact = next(row for row in rows if row["strategy"] == "exact")
    shares = [
        f"{exact[f'speedup_vs_{over}'] / exact[f'bound_vs_{over}']:.2f} ({over})"
        for over in ("snapshot", "truncated")
    ]
    print(f"in brackets the bound; exact reaches {' and '.join(shares)} of it\n")
    if "profile_ms" in exact:
        profile = Table(title="profile: ms of one step", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("method", *exact["profile_ms"]):
            profile.add_column(name, justify="left" if name == "method" else "right")
        for row in rows:
            name = row["strategy"].replace("_by_", ", by ")
            profile.add_row(name, *(f"{ms:.1f}" for ms in row["profile_ms"].values()))
        console.print(profile)


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
    parser.add_argument(
        "--profile", dest="profiled", action="store_true", help="show where the time goes, too"
    )
    parser.add_argument(
        "--ghosts", action="store_true", help="measure what ghosts add to a step, and only that"
    )
    parser.add_argument(
        "--loss",
        action="store_true",
        help="measure the loss of 4096 tokens at a vocabulary of 151936 (10 GB), and only that",
    )
    parser.add_argument(
        "--page", type=Path, help="with --ghosts or --loss: write its section of this page"
    )
    args = vars(parser.parse_args(argv))
    page, ghosts, loss = args.pop("page"), args.pop("ghosts"), args.pop("loss")
    if page is not None and not ghosts and not loss:
        parser.error(
            "--page goes with --ghosts or --loss: the rest of the page is not written by a command"
        )
    try:
        if loss:
            run_loss(page, rounds=args["rounds"])
        elif ghosts:
            run_ghosts(page, **{k: v for k, v in args.items() if k != "profiled"})
        else:
            run(**args)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
