"""What a token counts: every objective beside plain fine-tuning, on the same data.

    dynatok bench objectives                          run what is missing, then write the page
    dynatok bench objectives --report-only            write the page from the raw results
    dynatok bench objectives --arms gold/sft gold/dft --seeds 0 1 --seconds 0
    dynatok bench objectives --model smollm2          a chat model: its own raw results and section
    dynatok bench objectives --model smollm2 --loss-tokens 30000     for longer: a part of its own

The tiny world, by the trainer itself. Each arm of a seed begins with the same weights and is
measured twice: after equally many loss tokens, and after equal training time (CPU seconds of this
process on one thread; making data and measuring do not count; `--seconds 0` leaves this one out).
Seed after seed, so that arms have equally many whenever it is stopped. One line of raw results per
arm and seed; what is there is not run again. The rules that decide about
counterfactual credit stand in `benchmarks/_objectives_verdicts.py`.

A chat model trains on the gold texts of `dynatok bench real` and is measured on its tasks, after
equally many loss tokens, on one thread where there is no GPU. Its raw results stand beside the
others, in `objectives-chat.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._objectives_arms import Arm
    from benchmarks._objectives_train import World

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
BASE = "base"
"""What a raw result calls the untrained model."""
TINY_SETTINGS = {"seeds": list(range(10)), "seconds": 20.0, "loss_tokens": 24_000, "tasks": 96}
CHAT_SETTINGS = {"seeds": [0, 1, 2], "seconds": 0.0, "loss_tokens": 10_000, "tasks": 60}
"""So that one arm of one seed of 135 million parameters takes some ten minutes on one core."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, and write the report."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench objectives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", type=Path, default=DOCS / "objectives.jsonl", help="raw results")
    parser.add_argument("--report", type=Path, default=DOCS / "objectives.md", help="report")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, smollm2, or a folder with such a model")
    add("--gold", type=Path, default=DOCS / "real-gold.jsonl", help="a chat model's gold texts")
    add("--seeds", type=int, nargs="+", help="default: ten; of a chat model three")
    add("--arms", nargs="+", help="such as gold/dft, base; default: all; of a chat model a dozen")
    add("--seconds", type=float, help="CPU seconds of training; default: 20; of a chat model none")
    add("--loss-tokens", type=int, help="for the equal-token point; default: 24000; chat: 10000")
    add("--tasks", type=int, help="held-out tasks of a measurement; default: 96; chat: 60")
    add("--minutes", type=float, help="begin nothing after so many minutes")
    args = parser.parse_args(arguments)
    chat_raw = args.raw.with_name(f"{args.raw.stem}-chat.jsonl")
    refused = []
    if not args.report_only:
        try:
            chat = is_chat(args.model)
        except ValueError as error:
            print(f"dynatok: {error}", file=sys.stderr)
            return 2
        for name, value in (CHAT_SETTINGS if chat else TINY_SETTINGS).items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        refused = run(args, chat_raw if chat else args.raw, chat)
    from benchmarks._objectives_report import write_report

    results, of_chat = read_results(args.raw), read_results(chat_raw)
    write_report(results, args.report, of_chat)
    last = {
        "report": str(args.report),
        "results": len(results),
        "chat_results": len(of_chat),
        "refused": refused,
    }
    print(json.dumps(last))
    return 0


def read_results(path: Path) -> list[dict[str, Any]]:
    """The raw results; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_chat(model: str) -> bool:
    """Whether it is a model with a chat template. ValueError where there is no such model."""
    from dynatok_online.models import resolve

    folder = resolve(model)
    if model == "tiny":
        return False
    from transformers import AutoTokenizer

    try:
        return bool(AutoTokenizer.from_pretrained(folder).chat_template)
    except OSError as error:
        raise ValueError(f"--model {model}: {error}") from error


def planned(
    names: Sequence[str] | None, seeds: Sequence[int], chat: bool = False
) -> list[tuple[Arm | None, int]]:
    """What to run, in this order: seed by seed, what decides about credit first; None: the
    untrained model, which all are seen against.

    SystemExit for an arm that there is not. Arms whose objective is not there yet are left out.
    """
    from benchmarks._objectives_arms import CHAT, arms

    known: dict[str, Arm | None] = {one.key: one for one in arms()}
    if chat:
        known = {name: known[name] for name in CHAT} | known
        known = {name: one for name, one in known.items() if not name.startswith("policy/")}
    known[BASE] = None
    for name in names or ():
        if name not in known:
            raise SystemExit(f"there is no arm {name!r}; use {', '.join(known)}")
    if names is None and chat:
        names = (*CHAT, BASE)
    chosen = [one for name, one in known.items() if names is None or name in names]
    return [(one, seed) for seed in seeds for one in chosen if one is None or there(one)]


def there(arm: Arm) -> bool:
    """Whether its objective exists."""
    from dynatok_online.objectives.written import objective_of

    try:
        objective_of(arm.objective)
    except ValueError:
        return False
    return True


def _tokens(arm: str, loss_tokens: int) -> int:
    """Loss tokens that an arm is measured after: another run where they are others."""
    return 0 if arm == BASE else loss_tokens


def run(args: argparse.Namespace, raw: Path, chat: bool) -> list[str]:
    """Every arm and seed that `raw` lacks, and the untrained model for every seed.

    Returns what the trainer refused, and why: that costs no other arm.
    """
    from benchmarks._objectives_train import run_arm
    from benchmarks.adherence import machine
    from protocol.run.progress import progress_bar

    began = time.monotonic()
    done = {
        (one["arm"], one["seed"], _tokens(one["arm"], one["settings"]["loss_tokens"]))
        for one in read_results(raw)
    }
    plan = planned(args.arms, args.seeds, chat)
    jobs = [(one.key if one else BASE, seed, one) for one, seed in plan]
    todo = [one for one in jobs if (*one[:2], _tokens(one[0], args.loss_tokens)) not in done]
    raw.parent.mkdir(parents=True, exist_ok=True)
    refused: list[str] = []
    with progress_bar("objectives", len(todo)) as bar:
        world: World | None = None
        for name, seed, arm in todo:
            if args.minutes and time.monotonic() - began > 60 * args.minutes:
                break
            bar.name(f"{name}, seed {seed}")
            if world is None:
                world = make_world(args, chat, bar.name)
            at = time.monotonic()
            try:
                found = (
                    {"at_loss_tokens": world.state(world.model(), seed, True)}
                    if arm is None
                    else run_arm(
                        arm,
                        seed,
                        world=world,
                        seconds=args.seconds,
                        loss_tokens=args.loss_tokens,
                        say=partial(_say, bar.name, f"{name}, seed {seed}"),
                    )
                )
            except ValueError as error:
                refused.append(f"{name}, seed {seed}: {error}")
                bar.advance()
                continue
            line = {
                "arm": name,
                "seed": seed,
                "objective": None if arm is None else arm.objective,
                **found,
                "settings": {
                    key: getattr(args, key) for key in ("model", "seconds", "loss_tokens", "tasks")
                },
                "machine": machine() | ({} if world.cpu else {"cpu": gpu()}),
                "wall_seconds": round(time.monotonic() - at, 1),
            }
            with raw.open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.advance()
    return refused


def _say(name: Callable[[str], None], of: str, what: str) -> None:
    name(f"{of}: {what}")


def gpu() -> str:
    """The name of the device."""
    import torch

    return torch.cuda.get_device_name(0)


def make_world(args: argparse.Namespace, chat: bool, say: Callable[[str], None]) -> World:
    """Where arms train: the tiny world, or a chat model."""
    if not chat:
        from benchmarks._objectives_tiny import TinyWorld

        return TinyWorld(args.model, args.tasks)
    from benchmarks._objectives_chat import ChatWorld

    return ChatWorld(args.model, args.tasks, args.gold, say)


if __name__ == "__main__":
    raise SystemExit(main())
