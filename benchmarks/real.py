"""Does it work on a real language model? Adherence after an edit, by arm and by way of generation.

    dynatok bench real                            run what is missing, then write the report
    dynatok bench real --minutes 10               the most important first, as far as time allows
    dynatok bench real --jobs 12                  so many at once, which a large GPU has room for
    dynatok bench real --report-only              write the report from the raw lines

A chat model, held-out topics, nine requirements of style, one or two slots. Gold texts are the
model's own, rewritten under random edits. One raw line for each (arm, seed); what is there is not
run again, so the experiment can be spread over several sittings.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._jobs import Emit, Line, Measure, Todo, answer, bars, in_processes
from dynatok_online.models import resolve

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
SETTINGS = ("model", "steps", "batch", "learning_rate", "tasks", "texts", "max_tokens")
"""Arguments that a raw result depends on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, and write the report."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="smollm2", help="smollm2, or a chat model's folder")
    add("--raw", type=Path, default=DOCS / "real.jsonl", help="raw results")
    add("--gold", type=Path, default=None, help="gold texts (default: beside the raw results)")
    add("--report", type=Path, default=DOCS / "real.md", help="report")
    add("--report-only", action="store_true", help="train nothing")
    add("--minutes", type=float, default=None, help="begin nothing that would end later")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--arms", nargs="+", default=None, help="default: all, the most important first")
    add("--steps", type=int, default=150, help="optimizer steps of an arm")
    add("--batch", type=int, default=8, help="texts of a step")
    add("--learning-rate", type=float, default=2e-4)
    add("--tasks", type=int, default=240, help="held-out tasks of a measurement")
    add("--texts", type=int, default=1200, help="gold texts to train on")
    add("--note", default="", help="what is to be known of these runs; the report says it")
    add("--max-tokens", type=int, default=160, help="tokens of a measured response, at most")
    add("--jobs", type=int, default=1, help="processes that share the device")
    add("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        return answer(partial(_measuring, args))
    if args.gold is None:
        args.gold = args.raw.with_name("real-gold.jsonl")
    try:
        if not args.report_only:
            resolve(args.model)
    except ValueError as error:
        print(f"dynatok: {error}", file=sys.stderr)
        return 2
    left = [] if args.report_only else run(args)
    from benchmarks._real_report import write_report

    results = read_results(args.raw)
    done = {(one["arm"], one["seed"]) for one in results}
    missing = [one for one in planned(None, args.seeds) if one not in done]
    write_report(results, args.report, missing)
    print(json.dumps({"report": str(args.report), "results": len(results), "left": left}))
    return 0


def read_results(path: Path) -> list[dict[str, Any]]:
    """The raw results; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def planned(arms: Sequence[str] | None, seeds: Sequence[int]) -> list[tuple[str, int]]:
    """What to run, the most important first: both packed arms, the base, then the others.

    SystemExit for an arm that there is not.
    """
    from benchmarks._real_arms import ARMS

    names = ["packed_exact", "packed_sticky", "base", *list(ARMS)[2:]]
    for name in arms or ():
        if name not in names:
            raise SystemExit(f"there is no arm {name!r}; use {', '.join(names)}")
    chosen = [name for name in names if arms is None or name in arms]
    # One seed of each, then the packed arms' other seeds, then everybody's.
    head = [(name, seed) for seed in seeds[:1] for name in chosen if name in names[:3]]
    packed = [(name, seed) for seed in seeds for name in chosen if name in names[:2]]
    rest = [(name, seed) for name in chosen for seed in seeds]
    return list(dict.fromkeys([*head, *packed, *rest]))


def run(args: argparse.Namespace) -> list[str]:
    """Every (arm, seed) that the raw results lack; returns those that time did not allow, and
    those that failed."""
    done = {(one["arm"], one["seed"]) for one in read_results(args.raw)}
    units = [one for one in planned(args.arms, args.seeds) if one not in done]
    if not units:
        return []
    args.raw.parent.mkdir(parents=True, exist_ok=True)
    todo = Todo(units, args.minutes, kind=lambda arm: arm != "base")
    failed: list[str] = []
    with bars() as progress, args.raw.open("a") as file:
        everything = progress.add_task("arms and seeds", total=len(units))

        def emit(line: Line) -> None:
            name = f"{line['arm']}, seed {line['seed']}"
            progress.advance(everything)
            if "failed" in line:
                failed.append(f"{line['arm']}/{line['seed']} (failed)")
                progress.console.print(f"{name} failed:\n{line['failed']}", markup=False)
                return
            file.write(json.dumps(line) + "\n")
            file.flush()
            progress.console.print(f"{name}: {summary(line)}")

        def say(what: str, at: int, of: int | None) -> None:
            progress.update(bar, description=what, completed=at, total=of)

        bar = progress.add_task("the model", total=None)
        if args.jobs <= 1 or not args.gold.exists():  # which is made once, for all
            bench = Bench(args, say)
        if args.jobs > 1:
            progress.remove_task(bar)
            command = [sys.executable, "-m", "benchmarks.real", "--work"]
            for name in (*SETTINGS, "gold", "note"):
                command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
            in_processes(command, todo, min(args.jobs, len(units)), emit)
        else:
            for arm, seed in todo:
                emit(bench.line(arm, seed))
    return [*(f"{arm}/{seed}" for arm, seed in todo.left), *failed]


def _measuring(args: argparse.Namespace, emit: Emit) -> Measure:
    bench = Bench(args, lambda what, at, of: None)
    return lambda arm, seed, deadline: emit(bench.line(arm, seed))


def summary(line: dict[str, Any]) -> str:
    """One raw line in a few words."""
    from benchmarks._real_report import macro

    parts = [f"{line['wall_seconds']} s"]
    for mode, one in line["modes"].items():
        passes = sum(map(len, one["after"].values()))
        parts.append(
            f"{mode} {macro(one['after']):.3f} after edits ({passes} passes), "
            f"NLL {one['nll_under_base']:.2f}, gap {one.get('logprob_gap', {}).get('mean', 0):.1e}"
        )
    if "training" in line:
        nll, steps = line["training"]["nll"], line["training"]["steps"]
        parts.append(f"loss {nll[0]:.2f} to {nll[-1]:.2f} in {steps} steps")
        parts.append(f"{line['training']['seconds']:.0f} s of training")
    return "; ".join(parts)


class Bench:
    """The model and the data that all arms share."""

    def __init__(self, args: argparse.Namespace, say: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from benchmarks._real_arms import working_attention
        from benchmarks._real_data import Speech, gold_of, heldout_tasks, read_gold, write_gold

        logging.disable_progress_bar()
        self.args, self.say = args, say
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        folder = resolve(args.model)
        say("loading the model", 0, None)
        self.speech = Speech(AutoTokenizer.from_pretrained(folder))
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.base = loaded.to(self.device).eval()
        self.tasks = heldout_tasks(self.speech, args.tasks, max_tokens=args.max_tokens)
        if not args.gold.exists():
            golds = []
            for split, count, start in (("train", args.texts, 1), ("heldout", args.tasks, 2)):
                kept, counts = gold_of(
                    self.model(),
                    self.speech,
                    split,
                    count,
                    seed=start,
                    max_tokens=args.max_tokens,
                    progress=partial(say, f"gold texts, {split}"),
                )
                print(f"gold texts, {split}: {counts}", flush=True)
                golds += kept
            args.gold.parent.mkdir(parents=True, exist_ok=True)
            write_gold(args.gold, golds)
        self.golds = read_gold(args.gold, "train", self.speech)
        self.heldout_golds = read_gold(args.gold, "heldout", self.speech)
        self.kernel, found = working_attention(self.model(), self.golds, self.speech)
        print(found, flush=True)

    def model(self) -> Any:
        """A fresh copy of the untrained model."""
        import copy

        fresh = copy.deepcopy(self.base)
        # Weights alone: `.to` would round the rotary frequencies too, and with them positions.
        for weight in fresh.parameters():
            weight.data = weight.data.to(self.dtype)
        fresh.set_attn_implementation("sdpa")
        return fresh

    def line(self, name: str, seed: int) -> Line:
        """The raw result of one arm and seed; `failed` where it does not fit this device, which
        costs no other arm."""
        began = time.monotonic()
        try:
            line: Line = {"arm": name, "seed": seed, **self.result(name, seed), **self.facts()}
        except RuntimeError:
            return {"arm": name, "seed": seed, "failed": traceback.format_exc()}
        line["wall_seconds"] = round(time.monotonic() - began, 1)
        return line | ({"note": self.args.note} if self.args.note else {})

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """What came of one arm and seed."""
        from benchmarks._real_arms import ARMS, train
        from benchmarks._real_measures import fluency, judge, measure, modes_of

        model = self.model()
        asked: dict[str, Any] = {"seed": seed, "kernel": self.kernel}
        if name == "base":
            self.say("base model", 0, None)
            tasks = [one.task for one in self.heldout_golds]
            texts = [one.tokens for one in self.heldout_golds]
            gold = {
                **judge(self.speech, tasks, texts),
                **fluency(self.base, self.speech, tasks, texts),
            }
            modes = measure(model, self.base, self.speech, self.tasks, ("exact", "sticky"), **asked)
            return {"modes": {**modes, "gold": gold}}
        arm = ARMS[name]
        trained = train(
            model,
            arm,
            self.golds,
            self.speech,
            steps=self.args.steps,
            batch=self.args.batch,
            learning_rate=self.args.learning_rate,
            progress=lambda step, nll: self.say(
                f"{name}, seed {seed}, loss {nll:.2f}", step, self.args.steps
            ),
            **asked,
        )
        self.say(f"{name}, seed {seed}, measured", 0, None)
        modes = measure(model, self.base, self.speech, self.tasks, modes_of(arm), **asked)
        return {"modes": modes, "training": trained}

    def facts(self) -> dict[str, Any]:
        """What it ran with."""
        import torch
        import transformers

        device = (
            torch.cuda.get_device_name(0)
            if self.device == "cuda"
            else platform.processor() or platform.machine()
        )
        return {
            "settings": {
                **{key: getattr(self.args, key) for key in SETTINGS},
                "model": Path(self.args.model).name,
                "texts": len(self.golds),
                "attention": self.kernel,
                "dtype": str(self.dtype).removeprefix("torch."),
            },
            "machine": {
                "device": device,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            },
        }


if __name__ == "__main__":
    raise SystemExit(main())
