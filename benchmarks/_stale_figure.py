"""The figure of the stale map: family by distance, before and after training."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from benchmarks._share import wilson
from benchmarks._stale_families import FAMILIES
from benchmarks._stale_numbers import Figure, Results, over_seeds

PANELS = (
    ("untrained", "untrained"),
    ("exact", "trained on exact caches"),
    ("sticky", "trained on sticky caches"),
)
STYLES = {
    "untrained": ("#b0b7c3", "o", "untrained"),
    "exact": ("#2563a8", "s", "exact"),
    "sticky": ("#2e8b57", "D", "sticky"),
    "mixture": ("#e0a030", "^", "half and half"),
    "refresh": ("#8a6fae", "v", "last 32 recomputed"),
}


def draw(results: Results, path: Path, far: int) -> Path | None:
    """Heat maps above, one number per family with its interval below; None without matplotlib."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return None
    panels = [
        (arm, title, step) for arm, title in PANELS if (step := results.last(arm)) is not None
    ]
    canvas = Canvas(figsize=(11.5, 8.6), dpi=150, layout="constrained")
    parts: Any = canvas.subfigures(2, 1, height_ratios=(11, 9))
    above, below = parts
    axes = above.subplots(1, len(PANELS), sharey=True)
    image: Any = None
    for at, (arm, title, step) in zip(axes, panels, strict=False):
        image = _heat(at, results, arm, step, first=at is axes[0])
        seeds = len({one["seed"] for one in results.cells(arm, step)})
        more = f"\n{step} steps, {seeds} seed{'s' * (seeds > 1)}" if step else ""
        at.set_title(f"{title}{more}", fontsize=10, loc="left")
    for at in axes[len(panels) :]:
        at.set_axis_off()
    bar = above.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01)
    bar.set_label("stale share of an edit (median)")
    _dots(below, results, far)
    canvas.savefig(path)
    return path


def _heat(at: Any, results: Results, arm: str, step: int, *, first: bool) -> Any:
    distances = results.distances(arm, step)
    grid = []
    for row, name in enumerate(FAMILIES):
        values = []
        for column, distance in enumerate(distances):
            cells = results.cells(arm, step, name, lambda d, wanted=distance: d == wanted)  # type: ignore[misc]
            found = over_seeds(cells) if cells else None
            value = math.nan if found is None else found.value
            values.append(min(1.0, max(0.0, value)) if not math.isnan(value) else math.nan)
            if found is not None:
                text = "·" if math.isnan(value) else f"{value:.2f}"
                dark = not math.isnan(value) and value > 0.55
                color = "white" if dark else "#1f2937"
                at.text(
                    column, row - 0.08, text, ha="center", va="center", fontsize=7.5, color=color
                )
                count = f"n={found.kept}"
                at.text(
                    column, row + 0.3, count, ha="center", va="center", fontsize=4.5, color=color
                )
        grid.append(values)
    image = at.imshow(grid, vmin=0, vmax=1, cmap="YlOrRd", aspect="auto")
    at.set_facecolor("#eceff3")
    at.set_xticks(range(len(distances)), [str(one) for one in distances])
    at.set_yticks(range(len(FAMILIES)), [one.label for one in FAMILIES.values()])
    at.tick_params(length=0, labelsize=8, labelleft=first)
    at.set_xlabel("tokens between the slot and its use", fontsize=8.5)
    at.spines[:].set_visible(False)
    return image


def _dots(below: Any, results: Results, far: int) -> None:
    left, right = below.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    arms = [(arm, step) for arm in STYLES if (step := results.last(arm)) is not None]
    names = list(FAMILIES)
    for i, (arm, step) in enumerate(arms):
        color, mark, label = STYLES[arm]
        condition = "last32" if arm == "refresh" else "sticky"
        shift = (i - (len(arms) - 1) / 2) * 0.15
        for row, name in enumerate(names):
            cells = results.cells(arm, step, name, lambda d: d >= far)
            if not cells:
                continue
            found: Figure = over_seeds(cells, condition)
            y = row + shift
            if not math.isnan(found.value):
                if not math.isnan(found.low):
                    left.plot([found.low, found.high], [y, y], color=color, linewidth=1.4)
                left.plot(found.value, y, mark, color=color, markersize=4.5)
            lost, decided = found.lost
            if decided:
                low, high = wilson(lost, decided)
                right.plot([low, high], [y, y], color=color, linewidth=1.4)
                right.plot(lost / decided, y, mark, color=color, markersize=4.5)
        left.plot([], [], mark, color=color, label=label)
    left.set_yticks(range(len(names)), [one.label for one in FAMILIES.values()])
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xlim(-0.35, 1.15)
    left.axvline(0, color="#9ca3af", linewidth=0.8)
    left.set_xlabel(f"stale share, {far} tokens and more between (median, 95 %)", fontsize=8.5)
    right.set_xlim(-0.03, 1.03)
    right.set_xlabel("decisions lost, of those right when recomputed (95 %)", fontsize=8.5)
    right.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, loc="center right")
    for one in (left, right):
        one.grid(axis="x", alpha=0.3, linewidth=0.6)
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
