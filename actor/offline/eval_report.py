"""The report of `dynatok eval` for people: tables and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actor.offline.config import EvalConfig
from actor.offline.eval_summary import MEASURES
from dynatok_online.adherence.measures import Interval


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


def draw(path: Path, report: dict[str, Any]) -> None:
    """Adherence per requirement, before and after an edit."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = sorted({name for part in report.values() for name in part["mean"]["by_requirement"]})
    bars = 1.2 + 0.45 * len(names) * len(report)
    curve = 3.0 if len(report) > 1 else 0.0
    figure = Figure(figsize=(8, bars + curve), dpi=150)
    figure.set_layout_engine("constrained")
    if curve:
        axes, below = figure.subplots(2, 1, height_ratios=[bars, curve])
        _draw_curve(below, report)
    else:
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


def _draw_curve(axes: Any, report: dict[str, Any]) -> None:
    """Adherence after an edit against the tokens that edits compute again: what to choose from."""
    for reuse, part in report.items():
        one = part["mean"]["all"]
        if not {"adherence_after_edit", "recomputed_per_edit"} <= one.keys():
            continue
        at, height = one["recomputed_per_edit"]["mean"], one["adherence_after_edit"]["mean"]
        half = one["adherence_after_edit"]["half"] or 0.0
        axes.errorbar(at, height, yerr=half, fmt="o", color="#2563a8", ecolor="#374151", lw=1)
        axes.annotate(reuse, (at, height), (6, 6), textcoords="offset points", fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.margins(x=0.15)
    axes.set_xlabel("tokens computed again per edit")
    axes.set_ylabel("after an edit")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
