"""The tables of the adherence experiment's report, each from the raw results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def training_times(results: Sequence[Result]) -> list[float]:
    return [
        found if (found := time_to_level(one)) is not None else one["settings"]["seconds"]
        for one in results
    ]


def times(by_arm: dict[str, list[Result]]) -> list[str]:
    """How long each arm took."""
    reference = training_times(by_arm.get("d_exact", []))
    out = ["| arm | seconds | against (d) | seeds that got there |", "|---|---|---|---|"]
    for arm, _, label in ROWS:
        results = by_arm.get(arm, [])
        if not results:
            continue
        values = training_times(results)
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
            f"| {label} | {min(values):.3f} to {max(values):.3f} | {deviation(results):.3f} "
            f"| {100 * sum(spikes(one['nll']) for one in results) / steps:.1f} "
            f"| {number(rough)} |"
        )
    return out


def deviation(results: Sequence[Result]) -> float:
    """Sample deviation of the adherence over seeds; NaN for less than two."""
    values = [one["at_seconds"]["adherence_after_edit"] for one in results if "at_seconds" in one]
    return stdev(values) if len(values) > 1 else math.nan
