"""The report of the adherence experiment, from its raw results alone."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

from dynatok_online.adherence.measures import interval

Result = dict[str, Any]
LEVEL = 0.9
"""The adherence whose training time is compared."""
SPIKE = 1.5
"""A step whose loss is above this times the median of the ten steps before it is a spike."""

ROWS: tuple[tuple[str, str, str], ...] = (
    ("b_one_state", "at_seconds", "(b) snapshot masking, one state per visit, as published"),
    ("b_one_state_tokens", "at_seconds", "(b) the same, divided by the global token count"),
    ("b_all_states", "at_seconds", "(b) snapshot masking, all states"),
    ("b_all_states_tokens", "at_seconds", "(b) the same, divided by the global token count"),
    ("c_truncated", "at_seconds", "(c) one truncated pass per state"),
    ("d_exact", "at_seconds", "(d) packed, exact"),
    ("d_exact_3", "at_seconds", "(d) packed, exact, 3 trajectories a step"),
    ("g_sticky", "at_seconds", "(g) packed, sticky; sticky generation"),
    ("g_sticky_3", "at_seconds", "(g) packed, sticky, 3 a step; sticky generation"),
    ("h_appended", "at_seconds", "(h) appended correction"),
)
GENERATED: tuple[tuple[str, str, str], ...] = (
    ("a_base", "exact", "(a) base model, exact generation"),
    ("a_base", "sticky", "(e) base model, sticky generation"),
    ("d_exact", "at_seconds", "(d) trained exactly, exact generation"),
    ("d_exact", "sticky", "(f) trained exactly, sticky generation"),
    ("g_sticky", "exact", "trained stickily, exact generation"),
    ("g_sticky", "at_seconds", "(g) trained stickily, sticky generation"),
    ("h_appended", "at_seconds", "(h) appended correction"),
    ("a_base", "gold", "gold texts"),
)
COLORS = {
    "b_one_state": "#c2512f",
    "b_all_states": "#e0a030",
    "c_truncated": "#8a6fae",
    "d_exact": "#2563a8",
    "d_exact_3": "#7fb2e5",
    "g_sticky": "#2e8b57",
    "g_sticky_3": "#8fcfa8",
    "h_appended": "#6b7280",
}


def write_report(results: Sequence[Result], path: Path) -> None:
    """Write `path` and its figures beside it."""
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        by_arm[one["arm"]].append(one)
    if not by_arm:
        raise SystemExit("there are no raw results yet: run the experiment first")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = draw(by_arm, path)
    path.write_text("\n".join(text(by_arm, figures)) + "\n")


def text(by_arm: dict[str, list[Result]], figures: Sequence[str]) -> list[str]:
    """The lines of the report."""
    first = next(iter(by_arm.values()))[0]
    settings, machine = first["settings"], first["machine"]
    seeds = sorted({one["seed"] for arm in by_arm.values() for one in arm})
    return [
        "# Adherence: does it work?",
        "",
        "`dynatok bench adherence` runs what is missing of the raw results "
        "(`adherence.jsonl`, one line per arm and seed) and writes this page from them.",
        "",
        "The tiny world, its shipped model, gold responses under one to three scripted edits. All "
        "arms of a seed begin with the same weights, see the same gold texts in the same order, "
        "and share one optimizer (AdamW, 1e-3, ten steps of warm-up, clipping at 1). Held-out "
        f"tasks ({settings['tasks']}, the same for all) are sampled at temperature 1 by "
        "`dynatok_online.tiny.sampling`, which keeps a real KV cache and, for sticky, replaces the "
        "edited slot's 16-token blocks alone; its log-probabilities are those of the spans that "
        "the learner trains on. No engine is involved. "
        "Training time is CPU time of one thread, so other jobs on the machine count little: they "
        "ran beside it. Mean ± 95 % interval over seeds "
        f"{', '.join(map(str, seeds))}; {machine['cpu']}; torch {machine['torch']}, transformers "
        f"{machine['transformers']}; {machine['date']}.",
        "",
        *(f"![{name}]({name})" for name in figures),
        "",
        f"## After {settings['seconds']:.0f} s of training",
        "",
        *table(
            by_arm,
            ROWS,
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("worst seed", lambda m: m["adherence_after_edit"], min),
            ("latency", lambda m: m["latency"]),
            ("kept slots", lambda m: m["adherence_kept"]),
            ("NLL under base", lambda m: m["nll_under_base"]),
            ("known words", lambda m: m["known_words"]),
            ("steps", lambda m: m["step"]),
            ("loss tokens", lambda m: m["loss_tokens"]),
        ),
        "",
        f"## After {settings['loss_tokens']} loss tokens",
        "",
        *table(
            by_arm,
            tuple((arm, "at_loss_tokens", label) for arm, _, label in ROWS),
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("worst seed", lambda m: m["adherence_after_edit"], min),
            ("training time, s", lambda m: m["seconds"]),
            ("steps", lambda m: m["step"]),
            ("tokens run per loss token", lambda m: m["tokens"] / m["loss_tokens"]),
        ),
        "",
        "## How it is generated",
        "",
        *table(
            by_arm,
            GENERATED,
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("before", lambda m: m["adherence_static"]),
            ("latency", lambda m: m["latency"]),
            ("never followed", lambda m: m["never"]),
            ("tokens computed per generated one", lambda m: m.get("computed_per_token", math.nan)),
            ("recomputed per edit", lambda m: m.get("extra_tokens_per_edit", math.nan)),
            ("NLL under base", lambda m: m["nll_under_base"]),
            ("repetition", lambda m: m["repetition"]),
        ),
        "",
        "Latency: characters from an edit to the first compliant sentence; an edit that is never "
        "followed counts with the length of its pass. For (h) the appended text is what is "
        "recomputed. Known words: share of the response's words that the tiny world has.",
        "",
        f"## Time to an adherence of {LEVEL}",
        "",
        *times(by_arm),
        "",
        "Read off the curves (32 held-out tasks each sixth of the time, linear in between). A seed "
        "that did not get there in time counts with the whole time.",
        "",
        "## Stability",
        "",
        *stability(by_arm),
        "",
        f"A spike is a step whose mean loss per token is above {SPIKE} times the median of the ten "
        "steps before it.",
        "",
        "## What was expected, and what came",
        "",
        *verdicts(by_arm),
    ]


Column = tuple[str, Callable[[Result], float]] | tuple[str, Callable[[Result], float], Any]


def table(
    by_arm: dict[str, list[Result]], rows: Sequence[tuple[str, str, str]], *columns: Column
) -> list[str]:
    """One row per arm, one column per measure, over the seeds that have it."""
    out = [
        f"| arm | {' | '.join(column[0] for column in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for arm, where, label in rows:
        found = [one[where] for one in by_arm.get(arm, []) if where in one]
        if not found:
            continue
        cells = []
        for _, measure, *reduce in columns:
            values = [measure(one) for one in found]
            cells.append(f"{reduce[0](values):.3f}" if reduce else number(values))
        out.append(f"| {label} | {' | '.join(cells)} |")
    return out


def number(values: Sequence[float]) -> str:
    """Mean and interval, with as many digits as its size asks for."""
    if any(math.isnan(value) for value in values):
        return ""
    one = interval(values)
    digits = 3 if abs(one.mean) < 10 else 1 if abs(one.mean) < 1000 else 0
    half = "" if math.isnan(one.half) or one.half == 0 else f" ± {one.half:.{digits}f}"
    return f"{one.mean:.{digits}f}{half}"


def time_to_level(result: Result, level: float = LEVEL) -> float | None:
    """CPU seconds of training until the curve reaches the level; None where it does not."""
    before = (0.0, math.nan)
    for point in result["curve"]:
        here = (point["seconds"], point["adherence"])
        if here[1] >= level:
            if math.isnan(before[1]):
                return float(here[0])
            share = (level - before[1]) / (here[1] - before[1])
            return float(before[0] + share * (here[0] - before[0]))
        before = here
    return None


def _times(results: Sequence[Result]) -> list[float]:
    return [
        found if (found := time_to_level(one)) is not None else one["settings"]["seconds"]
        for one in results
    ]


def times(by_arm: dict[str, list[Result]]) -> list[str]:
    """How long each arm took."""
    reference = _times(by_arm.get("d_exact", []))
    out = ["| arm | seconds | against (d) | seeds that got there |", "|---|---|---|---|"]
    for arm, _, label in ROWS:
        results = by_arm.get(arm, [])
        if not results:
            continue
        values = _times(results)
        ratio = ""
        if reference:
            ratio = f"{(sum(values) / len(values)) / (sum(reference) / len(reference)):.2f}"
        there = sum(time_to_level(one) is not None for one in results)
        out.append(f"| {label} | {number(values)} | {ratio} | {there} of {len(results)} |")
    return out


def spikes(losses: Sequence[float]) -> int:
    """Steps whose loss is far above those before it."""
    return sum(losses[i] > SPIKE * median(losses[i - 10 : i]) for i in range(10, len(losses)))


def stability(by_arm: dict[str, list[Result]]) -> list[str]:
    """Spread over seeds, and how rough the way was."""
    out = [
        "| arm | adherence, lowest to highest seed | deviation over seeds | spikes per 100 steps "
        "| gradient norm, highest over median |",
        "|---|---|---|---|---|",
    ]
    for arm, where, label in ROWS:
        results = [one for one in by_arm.get(arm, []) if where in one]
        if not results:
            continue
        values = [one[where]["adherence_after_edit"] for one in results]
        steps = sum(len(one["nll"]) for one in results)
        norms = [one["grad_norm"][10:] or one["grad_norm"] for one in results]
        rough = [max(one) / median(one) for one in norms]
        out.append(
            f"| {label} | {min(values):.3f} to {max(values):.3f} | {_deviation(results):.3f} "
            f"| {100 * sum(spikes(one['nll']) for one in results) / steps:.1f} "
            f"| {number(rough)} |"
        )
    return out


def _deviation(results: Sequence[Result]) -> float:
    """Sample deviation of the adherence over seeds; NaN for less than two."""
    values = [one["at_seconds"]["adherence_after_edit"] for one in results if "at_seconds" in one]
    return stdev(values) if len(values) > 1 else math.nan


def verdicts(by_arm: dict[str, list[Result]]) -> list[str]:
    """Each expectation with the numbers that decide it."""

    def mean(arm: str, where: str, name: str) -> float:
        values = [one[where][name] for one in by_arm.get(arm, []) if where in one]
        return sum(values) / len(values) if values else math.nan

    def took(arm: str) -> float:
        values = _times(by_arm.get(arm, []))
        return sum(values) / len(values) if values else math.nan

    share = mean("g_sticky", "at_seconds", "adherence_after_edit") / mean(
        "d_exact", "at_seconds", "adherence_after_edit"
    )
    cost = mean("g_sticky", "at_seconds", "extra_tokens_per_edit") / mean(
        "d_exact", "at_seconds", "extra_tokens_per_edit"
    )
    base, exact = (mean("a_base", how, "adherence_after_edit") for how in ("sticky", "exact"))
    sticky = mean("d_exact", "sticky", "adherence_after_edit")
    rough = {arm: _deviation(by_arm.get(arm, [])) for arm in (*COLORS, "b_one_state_tokens")}
    found = [
        (
            "(g) reaches at least 0.95 of (d)'s adherence at less than a third of its recomputed "
            "tokens",
            share >= 0.95 and cost < 1 / 3,
            f"{share:.3f} of the adherence at {cost:.2f} of the tokens",
        ),
        (
            "(e) fails",
            base < 0.75,
            f"{base:.3f}; but the base model does not follow edits with exact generation either "
            f"({exact:.3f}), so here sticky generation is not what it fails at",
        ),
        (
            "(f) needs sticky training",
            sticky < 0.9 * mean("g_sticky", "at_seconds", "adherence_after_edit"),
            f"trained exactly and generated stickily it reaches {sticky:.3f}",
        ),
        (
            "(b), one state per visit, needs at least twice the time of (d)",
            took("b_one_state") >= 2 * took("d_exact"),
            f"{took('b_one_state') / took('d_exact'):.2f} times at as many trajectories a step; "
            f"{took('b_one_state') / took('d_exact_3'):.2f} times at about the same number of loss "
            "tokens a step",
        ),
        (
            "(b), all states, needs at least twice the time of (d)",
            took("b_all_states") >= 2 * took("d_exact"),
            f"{took('b_all_states') / took('d_exact'):.2f} times",
        ),
    ]
    found.append(
        (
            "The per-state mean explains the instability of (b), one state per visit",
            rough["b_one_state_tokens"] < 0.5 * rough["b_one_state"],
            f"deviation over seeds {rough['b_one_state']:.3f}, with the global token count "
            f"{rough['b_one_state_tokens']:.3f}, (d) {rough['d_exact']:.3f}",
        )
    )
    return [f"- {claim}: **{'yes' if held else 'no'}**. {how}." for claim, held, how in found]


def draw(by_arm: dict[str, list[Result]], path: Path) -> list[str]:
    """The figures' file names: adherence over time, and adherence against recomputed tokens."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    labels = {arm: label for arm, _, label in ROWS}
    for arm, color in COLORS.items():
        curves = [one["curve"] for one in by_arm.get(arm, [])]
        count = min(map(len, curves), default=0)
        if not count:
            continue
        x = [sum(c[i]["seconds"] for c in curves) / len(curves) for i in range(count)]
        ys = [[c[i]["adherence"] for c in curves] for i in range(count)]
        left.fill_between(x, [min(y) for y in ys], [max(y) for y in ys], color=color, alpha=0.1)
        dashes = "--" if arm.endswith("_3") else "-"
        left.plot(
            x, [sum(y) / len(y) for y in ys], dashes, color=color, label=labels[arm].split(";")[0]
        )
    left.set_xlabel("training, CPU seconds")
    left.set_ylabel("adherence after an edit")
    left.set_ylim(0.4, 1.0)
    left.legend(frameon=False, fontsize=6.5, loc="lower right")
    for arm, where, label in GENERATED:
        found = [one[where] for one in by_arm.get(arm, []) if where in one]
        found = [one for one in found if "extra_tokens_per_edit" in one]
        if not found:
            continue
        x = [one["extra_tokens_per_edit"] for one in found]
        y = [one["adherence_after_edit"] for one in found]
        color = COLORS.get(arm, "#111827")
        mark = "o" if where in ("at_seconds", "exact") and arm != "g_sticky" else "s"
        right.plot(x, y, mark, color=color, alpha=0.6, markersize=4)
        at = (sum(x) / len(x), sum(y) / len(y))
        right.annotate(
            label.split(" ")[0] if label.startswith("(") else "trained stickily",
            at,
            xytext=(6, 8) if arm == "g_sticky" else (6, -14),
            textcoords="offset points",
            ha="right" if arm == "g_sticky" and where == "exact" else "left",
            fontsize=8,
            color=color,
        )
    right.set_xlabel("tokens recomputed per edit")
    right.set_ylim(0.4, 1.0)
    right.set_xlim(0, 150)
    right.set_title("generation", fontsize=9, loc="left")
    left.set_title("training", fontsize=9, loc="left")
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    target = path.with_suffix(".png")
    figure.savefig(target)
    return [os.path.relpath(target, path.parent)]
