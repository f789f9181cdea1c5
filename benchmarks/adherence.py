"""Does it work? Adherence after an edit, by way of training and by way of generation.

    dynatok bench adherence                     run what is missing, then write the report
    dynatok bench adherence --report-only       write the report from the raw results

On the tiny world, with gold responses under scripted edits. Every arm trains on the same texts from
the same weights, and is measured twice: after equally many loss tokens, and after equal training
time, counted in CPU seconds of this process on one thread, so that what else runs on the machine
does not count. One line of raw results per (arm, seed); what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._adherence_arms import Arm

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
LEARNING_RATE = 1e-3
WARMUP = 10
HELDOUT_SEED = 77
CURVE_TASKS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, and write the report."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench adherence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", type=Path, default=DOCS / "adherence.jsonl", help="raw results")
    parser.add_argument("--report", type=Path, default=DOCS / "adherence.md", help="report")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--model", default="tiny", help="tiny, or a folder with such a model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=None, help="default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU seconds of training")
    parser.add_argument("--loss-tokens", type=int, default=24_000, help="for the equal-token point")
    parser.add_argument("--tasks", type=int, default=96, help="held-out tasks of a measurement")
    args = parser.parse_args(arguments)
    if not args.report_only:
        run(args)
    from benchmarks._adherence_report import write_report

    results = read_results(args.raw)
    write_report(results, args.report)
    print(json.dumps({"report": str(args.report), "results": len(results)}))
    return 0


def read_results(path: Path) -> list[dict[str, Any]]:
    """The raw results; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(args: argparse.Namespace) -> None:
    """Every (arm, seed) that the raw results lack."""
    from benchmarks._adherence_arms import ARMS
    from protocol.run.progress import progress_bar

    names = ["a_base", *ARMS] if args.arms is None else args.arms
    for name in names:
        if name != "a_base" and name not in ARMS:
            raise SystemExit(f"there is no arm {name!r}; use a_base, {', '.join(ARMS)}")
    done = {(one["arm"], one["seed"]) for one in read_results(args.raw)}
    todo = [(seed, name) for seed in args.seeds for name in names if (name, seed) not in done]
    args.raw.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar("adherence", len(todo)) as bar:
        for seed, name in todo:
            bar.name(f"{name}, seed {seed}")
            result = {
                "arm": name,
                "seed": seed,
                **(base_only(args, seed) if name == "a_base" else train(args, ARMS[name], seed)),
                "settings": {
                    key: getattr(args, key) for key in ("model", "seconds", "loss_tokens", "tasks")
                },
                "machine": machine(),
            }
            with args.raw.open("a") as file:
                file.write(json.dumps(result) + "\n")
            bar.advance()


def load(model: str) -> Any:
    """The model of that name, on one thread."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from dynatok_online import tiny

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(tiny.resolve(model)).eval()


def heldout(count: int) -> list[Any]:
    """The same held-out tasks for every arm and seed."""
    from dynatok_online.tiny import world

    return list(islice(world.tasks("heldout", seed=HELDOUT_SEED), count))


def base_only(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The untrained model, generating exactly and stickily, and the gold responses."""
    from benchmarks._adherence_measures import gold, measure
    from dynatok_online import attention

    model, base, tasks = load(args.model), load(args.model), heldout(args.tasks)
    attention.prepare(base, "concat")
    return {
        "exact": measure(model, base, tasks, reuse="exact", seed=seed),
        "sticky": measure(model, base, tasks, reuse="sticky", seed=seed),
        "gold": gold(base, tasks),
    }


def train(args: argparse.Namespace, arm: Arm, seed: int) -> dict[str, Any]:
    """Train one arm until both budgets are spent, and measure it as each is."""
    import torch

    from benchmarks._adherence_arms import batches
    from benchmarks._adherence_measures import adherence_after_edit, measure, sample
    from dynatok_online import attention

    torch.manual_seed(seed)
    model, base, tasks = load(args.model), load(args.model), heldout(args.tasks)
    attention.prepare(base, "concat")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    how: dict[str, Any] = {"reuse": arm.reuse, "appended": arm.appended, "seed": seed}
    result: dict[str, Any] = {"curve": [], "nll": [], "grad_norm": []}
    seconds, loss_tokens, tokens, step = 0.0, 0, 0, 0
    next_point = every = args.seconds / 6
    stream = batches(arm, seed)
    while "at_seconds" not in result or "at_loss_tokens" not in result:
        began = time.process_time()
        attention.prepare(model, "concat")
        model.train()
        rows, count = arm.rows(next(stream))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        nll = backward(model, rows)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.process_time() - began
        step += 1
        loss_tokens += count
        tokens += sum(row.tokens for row in rows)
        result["nll"].append(round(nll, 5))
        result["grad_norm"].append(round(float(norm), 5))

        spent = {"seconds": seconds, "loss_tokens": loss_tokens, "tokens": tokens, "step": step}
        for name, used, budget in (
            ("at_loss_tokens", loss_tokens, args.loss_tokens),
            ("at_seconds", seconds, args.seconds),
        ):
            if name not in result and used >= budget:
                result[name] = {**spent, **measure(model, base, tasks, **how)}
        if seconds >= next_point:
            next_point += every
            few = tasks[:CURVE_TASKS]
            texts, _ = sample(model, few, **how)
            result["curve"].append({**spent, "adherence": adherence_after_edit(few, texts)})
    for name, reuse in (("d_exact", "sticky"), ("g_sticky", "exact")):
        if arm.name == name:
            result[reuse] = measure(model, base, tasks, reuse=reuse, seed=seed)
    return result


def backward(model: Any, rows: Sequence[Any]) -> float:
    """Gradients of the weighted sum; returns the plain mean NLL of the tokens with loss."""
    import torch

    from dynatok_online import attention

    total, count = 0.0, 0
    for row in rows:
        logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets, dtype=torch.long)
        weights = torch.as_tensor(row.weights)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        (nll * weights).sum().backward()
        total += float(nll.detach()[weights > 0].sum())
        count += int((weights > 0).sum())
    return total / count


def machine() -> dict[str, str]:
    """What it ran on."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, one thread",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
