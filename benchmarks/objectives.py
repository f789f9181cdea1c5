"""What a token counts: every objective beside plain fine-tuning, on the same data.

    dynatok bench objectives                          run what is missing, then write the page
    dynatok bench objectives --report-only            write the page from the raw results
    dynatok bench objectives --arms gold/sft gold/dft --seeds 0 1 --seconds 0

The tiny world, by the trainer itself. Each arm of a seed begins with the same weights and is
measured twice: after equally many loss tokens, and after equal training time (CPU seconds of this
process on one thread; making data and measuring do not count; `--seconds 0` leaves this one out).
Seed after seed, so that arms have equally many whenever it is stopped. One line of raw results per
arm and seed; what is there is not run again. The rules that decide about
counterfactual credit stand in `benchmarks/_objectives_verdicts.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._objectives_arms import Arm

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
BASE = "base"
"""What a raw result calls the untrained model."""


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
    parser.add_argument("--model", default="tiny", help="tiny, or a folder with such a model")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--arms", nargs="+", help="such as gold/dft, base; default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU seconds of training")
    parser.add_argument("--loss-tokens", type=int, default=24_000, help="for the equal-token point")
    parser.add_argument("--tasks", type=int, default=96, help="held-out tasks of a measurement")
    parser.add_argument("--minutes", type=float, help="begin nothing after so many minutes")
    args = parser.parse_args(arguments)
    refused = [] if args.report_only else run(args)
    from benchmarks._objectives_report import write_report

    results = read_results(args.raw)
    write_report(results, args.report)
    last = {"report": str(args.report), "results": len(results), "refused": refused}
    print(json.dumps(last))
    return 0


def read_results(path: Path) -> list[dict[str, Any]]:
    """The raw results; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def planned(names: Sequence[str] | None, seeds: Sequence[int]) -> list[tuple[Arm | None, int]]:
    """What to run, in this order: seed by seed, what decides about credit first; None: the
    untrained model, which all are seen against.

    SystemExit for an arm that there is not. Arms whose objective is not there yet are left out.
    """
    from benchmarks._objectives_arms import arms

    known: dict[str, Arm | None] = {one.key: one for one in arms()} | {BASE: None}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"there is no arm {name!r}; use {', '.join(known)}")
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


def run(args: argparse.Namespace) -> list[str]:
    """Every arm and seed that the raw results lack, and the untrained model for every seed.

    Returns what the trainer refused, and why: that costs no other arm.
    """
    from benchmarks._objectives_train import base_state, run_arm
    from benchmarks.adherence import machine
    from protocol.run.progress import progress_bar

    began = time.monotonic()
    done = {(one["arm"], one["seed"]) for one in read_results(args.raw)}
    jobs = [(one.key if one else BASE, seed, one) for one, seed in planned(args.arms, args.seeds)]
    todo = [one for one in jobs if one[:2] not in done]
    args.raw.parent.mkdir(parents=True, exist_ok=True)
    refused: list[str] = []
    with progress_bar("objectives", len(todo)) as bar:
        for name, seed, arm in todo:
            if args.minutes and time.monotonic() - began > 60 * args.minutes:
                break
            bar.name(f"{name}, seed {seed}")
            at = time.monotonic()
            try:
                found = (
                    base_state(seed, model=args.model, tasks=args.tasks)
                    if arm is None
                    else run_arm(
                        arm,
                        seed,
                        model=args.model,
                        seconds=args.seconds,
                        loss_tokens=args.loss_tokens,
                        tasks=args.tasks,
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
                "machine": machine(),
                "wall_seconds": round(time.monotonic() - at, 1),
            }
            with args.raw.open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.advance()
    return refused


if __name__ == "__main__":
    raise SystemExit(main())
