"""`dynatok eval`: adherence before and after edits, its latency, and fluency, seed by seed.

Every seed samples its own tasks with its own draws; what is reported is the mean over seeds with a
95 % interval over seeds, or over edits where there is one seed, and how many edits were judged. The
run folder holds `evaluation.json` (all numbers, per seed), `evaluation.md` (tables),
`evaluation.png`, and the sampled trajectories.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from actor.config import ReusePolicy
from actor.offline.alone import Alone, Bad, load_tasks, with_engine
from actor.offline.config import EvalConfig
from actor.sessions.live_session import Finished
from dynatok_online.adherence.judging import Judged, judge
from dynatok_online.adherence.measures import Interval, interval, repetition
from dynatok_online.adherence.summary import share
from dynatok_online.data.storage import write_trajectories
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory
from protocol.run.json_files import write_json
from protocol.run.progress import Bar, progress_bar
from protocol.run.run_folder import make_run_folder

MEASURES = {
    "adherence_after_edit": "adherence after an edit",
    "adherence_static": "adherence before the first edit",
    "latency": "tokens from an edit to the first compliant sentence",
    "never": "share of edits that are never followed",
    "repetition": "share of runs of four words that stood before",
    "nll_under_base": "NLL per token under the base model",
    "computed_per_token": "tokens computed per generated token",
}
"""What is measured, in the order of the report."""


@dataclass(frozen=True)
class Sample:
    """One response, and what came of it."""

    finished: Finished
    text: str
    judged: Sequence[Judged]


def run(config: EvalConfig) -> int:
    """Sample, judge, write the report; the exit code. Raises ValueError."""
    bad = Bad()
    tasks = {
        seed: list(islice(load_tasks(config, config.split, seed, bad), config.count))
        for seed in config.seeds
    }
    folder = make_run_folder(Path(config.dir), config.name)
    write_json(folder / "eval.json", msgspec.to_builtins(config))
    print(f"dynatok: run folder {folder}", file=sys.stderr, flush=True)
    samples: dict[tuple[ReusePolicy, int], list[Sample]] = {}

    async def work(alone: Alone) -> None:
        with progress_bar("eval", len(config.reuse) * sum(map(len, tasks.values()))) as bar:
            for reuse in config.reuse:
                for seed in config.seeds:
                    samples[reuse, seed] = await _sample(
                        alone, tasks[seed], reuse, config.sessions, bar
                    )

    with_engine(config, config.seeds[0], work)
    for (reuse, seed), found in samples.items():
        path = folder / "trajectories" / f"{reuse}-{seed}.parquet"
        write_trajectories(path, [one.finished.trajectory for one in found])
    report: dict[str, Any] = {}
    for reuse in config.reuse:
        by_seed = {seed: summary(samples[reuse, seed], config.base_model) for seed in config.seeds}
        report[reuse] = {"by_seed": by_seed, "mean": over_seeds(list(by_seed.values()))}
    write_json(folder / "evaluation.json", report)
    (folder / "evaluation.md").write_text(markdown(config, report))
    _draw(folder / "evaluation.png", report)
    last = {
        reuse: {name: one["mean"] for name, one in part["mean"]["all"].items()}
        | {"edits_judged": part["mean"]["edits_judged"]["all"]}
        for reuse, part in report.items()
    }
    print(json.dumps({"run_dir": str(folder), "bad_tasks": bad.count, **last}), flush=True)
    return 0


async def _sample(
    alone: Alone, tasks: Sequence[Task], reuse: ReusePolicy, sessions: int, bar: Bar
) -> list[Sample]:
    pending = iter(tasks)
    done: list[Sample] = []

    async def work() -> None:
        for task in pending:
            finished = await alone.session(task, reuse).run()
            trajectory = finished.trajectory
            text = alone.decode(trajectory.response.tolist())
            done.append(Sample(finished, text, judge(task, trajectory, alone.decode)))
            bar.advance()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(sessions, len(tasks))):
            group.create_task(work())
    return sorted(done, key=lambda one: one.finished.trajectory.trajectory_id)


def summary(samples: Sequence[Sample], base_model: str = "") -> dict[str, Any]:
    """The measures of one seed, in all and per requirement; None where there is no evidence."""
    by_name: dict[str, list[Judged]] = defaultdict(list)
    for sample in samples:
        for one in sample.judged:
            by_name[one.requirement].append(one)
    counts = [sample.finished.counts for sample in samples]
    generated = sum(one.generated_tokens for one in counts)
    everything: dict[str, float | None] = {
        **_adherence([one for sample in samples for one in sample.judged]),
        "repetition": _mean([repetition(sample.text) for sample in samples]),
        "computed_per_token": sum(one.computed_tokens for one in counts) / max(1, generated),
    }
    if base_model:
        everything["nll_under_base"] = nll_under(
            base_model, [sample.finished.trajectory for sample in samples]
        )
    return {
        "all": everything,
        "responses": len(samples),
        "edits": sum(one.edits for one in counts),
        "by_requirement": {name: _adherence(units) for name, units in sorted(by_name.items())},
    }


def _adherence(judged: Sequence[Judged]) -> dict[str, float | None]:
    edited = [one for one in judged if one.edited]
    static = [one for one in judged if one.static]
    after, before = (share([one.score for one in part]) for part in (edited, static))
    return {
        "adherence_after_edit": after["mean"],
        "adherence_after_edit_half": after["half"],
        "edits_judged": after["count"],
        "adherence_static": before["mean"],
        "adherence_static_half": before["half"],
        # An edit that is never followed counts with the length of the text that follows it.
        "latency": _mean([one.tokens if one.latency is None else one.latency for one in edited]),
        "never": _mean([float(one.latency is None) for one in edited]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def over_seeds(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same measures as intervals over seeds; a seed without evidence is left out."""
    names = sorted({name for one in seeds for name in one["by_requirement"]})
    return {
        "all": _intervals([one["all"] for one in seeds]),
        "by_requirement": {
            name: _intervals([one["by_requirement"].get(name, {}) for one in seeds])
            for name in names
        },
        "edits_judged": {
            "all": sum(one["all"]["edits_judged"] for one in seeds),
            "by_requirement": {
                name: sum(
                    one["by_requirement"].get(name, {}).get("edits_judged", 0) for one in seeds
                )
                for name in names
            },
        },
    }


def _intervals(seeds: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float]]:
    out = {}
    for name in MEASURES:
        values = [value for one in seeds if (value := one.get(name)) is not None]
        if values:
            one = interval(values)
            if len(seeds) == 1 and (half := seeds[0].get(f"{name}_half")) is not None:
                one = replace(one, half=half)  # over its edits: there are no other seeds
            out[name] = msgspec.to_builtins(one)
    return out


def nll_under(model: str, trajectories: Sequence[Trajectory]) -> float:
    """Mean negative log-likelihood per response token, each under its pass's own prompt."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from dynatok_online import attention, tiny
    from dynatok_online.rows.plan import plan_rows

    logging.disable_progress_bar()
    judge_model = AutoModelForCausalLM.from_pretrained(tiny.resolve(model)).eval()
    attention.prepare(judge_model, "concat")
    total, count = 0.0, 0
    longest = max((t.kv_length(k) for t in trajectories for k in range(len(t.passes))), default=0)
    with torch.no_grad():
        for row in plan_rows(trajectories, max_tokens=max(4096, longest), strategy="truncated"):
            logits = judge_model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
            targets = torch.as_tensor(row.targets, dtype=torch.long)
            nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
            total, count = total + float(nll), count + len(targets)
    return total / max(1, count)


def markdown(config: EvalConfig, report: dict[str, Any]) -> str:
    """The report for people."""
    seeds = ", ".join(map(str, config.seeds))
    lines = [
        "# Evaluation",
        "",
        f"Model {config.model}; {config.count} {config.split} tasks of {config.tasks} per seed; "
        f"seeds {seeds}; temperature {config.sampling.temperature}; mean ± 95 % interval over "
        f"{'seeds' if len(config.seeds) > 1 else 'edits'}.",
        "",
        f"| measure | {' | '.join(report)} |",
        f"|---|{'---|' * len(report)}",
    ]
    for name, words in MEASURES.items():
        cells = [_cell(part["mean"]["all"].get(name)) for part in report.values()]
        if any(cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    counts = (str(part["mean"]["edits_judged"]["all"]) for part in report.values())
    lines.append(f"| edits judged | {' | '.join(counts)} |")
    for reuse, part in report.items():
        lines += [
            "",
            f"## By requirement, {reuse}",
            "",
            "| requirement | edits | after an edit | before | latency | never |",
            "|---|---|---|---|---|---|",
        ]
        for name, one in part["mean"]["by_requirement"].items():
            columns = ("adherence_after_edit", "adherence_static", "latency", "never")
            cells = [_cell(one.get(column)) for column in columns]
            count = part["mean"]["edits_judged"]["by_requirement"][name]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return str(Interval(**{**value, "count": int(value["count"])}))  # type: ignore[arg-type]


def _draw(path: Path, report: dict[str, Any]) -> None:
    """Adherence per requirement, before and after an edit."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = sorted({name for part in report.values() for name in part["mean"]["by_requirement"]})
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(names) * len(report)), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    labels = []
    for at, (reuse, name) in enumerate((r, n) for n in names for r in report):
        one = report[reuse]["mean"]["by_requirement"].get(name, {})
        for shift, kind, color in (
            (-0.18, "adherence_static", "#9aa5b1"),
            (0.18, "adherence_after_edit", "#2563a8"),
        ):
            if kind in one:
                error = one[kind]["half"] or 0.0
                line = {"ecolor": "#374151", "elinewidth": 1}
                axes.barh(
                    at + shift, one[kind]["mean"], 0.34, xerr=error, color=color, error_kw=line
                )
        labels.append(name if len(report) == 1 else f"{name}, {reuse}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(0, 1.02)
    for color, label in (("#9aa5b1", "before the first edit"), ("#2563a8", "after an edit")):
        axes.barh([0], [0], color=color, label=label)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    axes.set_title("Adherence", fontweight="bold", loc="left")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
