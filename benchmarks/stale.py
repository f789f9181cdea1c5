"""Where does old KV hurt, and what repairs it? The stale map of a real model.

    dynatok bench stale --model PATH                 run what is missing, then write the report
    dynatok bench stale --model PATH --quick         fewer items and distances: minutes on a CPU
    dynatok bench stale --report-only                write the report from the raw results

A slot is edited after text was written behind it, only its own KV is replaced (sticky), and the
model answers what the slot now asks for. How much of the edit's effect on the log-odds of the
answer is lost, against full recomputation, is the stale share. It is measured over ten families of
slots and the distance between slot and answer, before and after training on that cache state, or
on others, with other values and other texts.

Raw results are one line per arm, seed, step and cell; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks._jobs import Emit, Line, Measure, Todo, Unit, answer, bars, in_processes

if TYPE_CHECKING:
    from benchmarks._stale_items import Group

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"


class Size(msgspec.Struct, frozen=True):
    """How much is measured."""

    distances: tuple[int, ...]
    several: tuple[int, ...]
    """Distances at which several edits are measured."""
    between: tuple[int, ...]
    """Distances that are measured on the way, and for arms of few steps."""
    items: int
    """Items of each template."""
    templates: int
    steps: int
    """The last step of training that is still measured."""
    seeds: tuple[int, ...]
    arms: tuple[str, ...]


FULL = Size(
    distances=(0, 25, 50, 100, 200, 400),
    several=(50, 200),
    between=(50, 200),
    items=12,
    templates=3,
    steps=100,
    seeds=(0, 1, 2),
    arms=(),
)
QUICK = Size(
    distances=(0, 50, 200),
    several=(),
    between=(50,),
    items=4,
    templates=2,
    steps=30,
    seeds=(0,),
    arms=("untrained", "sticky", "exact"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench stale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="a folder or name that transformers loads")
    parser.add_argument("--quick", action="store_true", help="about ten minutes on two cores")
    parser.add_argument("--raw", type=Path, help="raw results (docs/benchmarks/stale.jsonl)")
    parser.add_argument("--report", type=Path, help="report (docs/benchmarks/stale.md)")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--minutes", type=float, help="begin nothing that would end later")
    parser.add_argument("--arms", nargs="+", help="default: all, the most telling ones first")
    parser.add_argument("--seeds", type=int, nargs="+", help="of training (0 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the device")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    size = QUICK if args.quick else FULL
    if args.work:
        return answer(partial(_measuring, args.model, size))
    name = "stale-quick" if args.quick else "stale"
    raw: Path = args.raw or DOCS / f"{name}.jsonl"
    report: Path = args.report or DOCS / f"{name}.md"
    if not args.report_only:
        if args.model is None:
            parser.error("--model is missing: the folder of a model, say models/SmolLM2-135M")
        todo = units(size, args.arms, args.seeds or size.seeds, read_lines(raw))
        run(args, todo, raw)
    from benchmarks._stale_report import write_report

    lines = read_lines(raw)
    write_report(lines, report)
    print(json.dumps({"report": str(report), "lines": len(lines)}))
    return 0


def read_lines(path: Path) -> list[Line]:
    """The raw results; none where there is no file. A line cut off by a crash is left out."""
    out = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            out.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"{path}: a broken line is left out: {text[:60]}", file=sys.stderr)
    return out


def units(
    size: Size, arms: Sequence[str] | None, seeds: Sequence[int], lines: Sequence[Line]
) -> list[Unit]:
    """(arm, seed) that are not wholly measured yet, the most telling first."""
    from benchmarks._stale_training import ARMS

    for name in arms or ():
        if name not in ARMS:
            raise SystemExit(f"there is no arm {name!r}; use one of {', '.join(ARMS)}")
    chosen = list(arms or size.arms or ARMS)
    finished = {(one["arm"], one["seed"]) for one in lines if one["kind"] == "finished"}
    order: list[list[Unit]] = [[] for _ in range(4)]
    for seed in seeds:
        for name in chosen:
            if name == "untrained":
                if seed == seeds[0]:
                    order[0].append((name, 0))
            elif name in ("sticky", "exact"):
                order[1].append((name, seed))
            elif name.startswith("sticky@") and not name.startswith("sticky@half"):
                if seed == seeds[0]:
                    order[3].append((name, seed))
            else:
                order[2].append((name, seed))
    return [one for group in order for one in group if one not in finished]


def run(args: argparse.Namespace, wanted: Sequence[Unit], raw: Path) -> None:
    """Measure the units, in this process or in several that share the device."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    todo = Todo(wanted, args.minutes, kind=lambda arm: "@" in arm)
    with bars() as progress, raw.open("a") as file:
        bar = progress.add_task("stale map", total=len(wanted))

        def emit(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if line["kind"] == "finished":
                progress.advance(bar)
                spent = f"{line['seconds']:.0f} s"
                progress.console.print(f"{line['arm']}, seed {line['seed']}: {spent}")

        if args.jobs > 1:
            command = [sys.executable, "-m", "benchmarks.stale", "--work", "--model", args.model]
            command += ["--quick"] * args.quick
            in_processes(command, todo, min(args.jobs, len(wanted)), emit)
        else:
            bench = Bench(args.model, QUICK if args.quick else FULL, emit)
            for unit in todo:
                bench.measure(*unit, deadline=todo.deadline)
        for arm, seed in todo.left:
            progress.console.print(f"{arm}, seed {seed}: no time left")


def _measuring(model: str, size: Size, emit: Emit) -> Measure:
    bench = Bench(model, size, emit)
    return lambda arm, seed, deadline: bench.measure(arm, seed, deadline=deadline)


class Bench:
    """A model at hand, the rows of the map, and where results go."""

    def __init__(self, model: str, size: Size, emit: Emit) -> None:
        import torch
        from transformers import AutoTokenizer

        from benchmarks._stale_items import Encoder
        from benchmarks._stale_measure import Prose, load_model

        self._size, self._emit, self._path = size, emit, model
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encode = Encoder(AutoTokenizer.from_pretrained(model))
        self._model = load_model(model, self._device)
        self._untrained = {
            name: one.detach().to("cpu", copy=True)
            for name, one in self._model.state_dict().items()
        }
        self._prose = Prose(self._model, self._encode)
        self._groups: dict[tuple[object, ...], tuple[Group, Any]] = {}

    def measure(self, name: str, seed: int, *, deadline: float = float("inf")) -> None:
        """Train and measure one arm, at each of its steps."""
        from benchmarks._stale_measure import measure
        from benchmarks._stale_training import ARMS, Training

        arm = ARMS[name]
        began = time.monotonic()
        steps = [step for step in arm.steps if step <= self._size.steps]
        self._model.load_state_dict(self._untrained)
        where = {"arm": name, "seed": seed}
        training = Training(self._model, arm, self._encode, seed) if arm.caches else None
        seconds = 0.0
        for step in steps:
            while training is not None and training.step < step:
                if time.monotonic() > deadline:
                    return
                start = time.monotonic()
                training.advance()
                seconds += time.monotonic() - start
            spent = {
                "tokens": training.tokens if training else 0,
                "loss_tokens": training.loss_tokens if training else 0,
                "loss": round(training.loss, 4) if training else None,
                "train_seconds": round(seconds, 2),
            }
            at = {**where, "step": step}
            self._emit({"kind": "prose", **at, **spent, **self._prose.measure(self._model)})
            whole = step in (0, self._size.steps)
            for group, rows in self._cells(arm.conditions, whole):
                if time.monotonic() > deadline:
                    return
                self._emit({"kind": "cell", **at, **measure(self._model, group, rows)})
        if name == "untrained":
            self._emit(self._checked())
        took = round(time.monotonic() - began, 1)
        self._emit({"kind": "finished", **where, "seconds": took, "machine": self._machine()})

    def _cells(self, conditions: Sequence[str], whole: bool) -> Iterator[tuple[Group, Any]]:
        """The cells of the map, one edit first."""
        from benchmarks._stale_families import FAMILIES
        from benchmarks._stale_items import CONDITIONS, make_group
        from benchmarks._stale_measure import ready

        size = self._size
        cells = [("ab", one) for one in (size.distances if whole else size.between)]
        if whole:
            cells += [(edits, one) for edits in ("aba", "abc") for one in size.several]
        for edits, distance in cells:
            for family in FAMILIES.values():
                wanted = conditions if edits == "ab" else CONDITIONS
                key = (family.name, edits, distance, tuple(wanted))
                if key not in self._groups:
                    group = make_group(
                        family,
                        distance,
                        edits,
                        self._encode,
                        wanted,
                        count=size.items,
                        templates=size.templates,
                    )
                    self._groups[key] = group, ready(group.rows)
                yield self._groups[key]

    def _checked(self) -> Line:
        """How far the rows are from a KV cache that transformers keeps, on a few items."""
        from benchmarks._stale_check import compare

        return {"kind": "check", **compare(self._model, self._path, self._encode)}

    def _machine(self) -> dict[str, Any]:
        import torch
        import transformers

        if self._device == "cuda":
            what = torch.cuda.get_device_name()
        else:
            what = platform.processor() or platform.machine()
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    what = f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} threads"
                    break
        return {
            "device": what,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "model": Path(self._path).name,
            "parameters": sum(one.numel() for one in self._model.parameters()),
            "size": msgspec.to_builtins(self._size),
        }


if __name__ == "__main__":
    raise SystemExit(main())
