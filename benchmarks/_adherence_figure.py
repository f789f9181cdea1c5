"""The figure of the adherence experiment: over training time, and against what is recomputed."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks._adherence_tables import GENERATED, ROWS, Result

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
