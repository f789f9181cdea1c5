"""The picture of a run: adherence after an edit and loss, over time.

python -m launch.picture RUN     draws RUN/adherence.png again
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launch.history import ADHERENCE, History, evaluations, smooth

FILE = "adherence.png"
_BLUE, _RED, _GREY = "#2563a8", "#c2512f", "#6b7280"


def draw(run_dir: Path) -> Path | None:
    """Draw `RUN/adherence.png`; None where there is nothing to draw, or nothing to draw with."""
    history = History(run_dir)
    history.update()
    adherence = history.curve("actor", ADHERENCE)
    loss = history.curve("learner", "loss")
    held_out = evaluations(run_dir)
    if not (adherence or loss or held_out):
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    times = [at for curve in (adherence, loss) for at, _, _ in curve]
    zero, end = (min(times), max(times)) if times else (0.0, 1.0)
    figure = Figure(figsize=(8, 5.2), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle("Following a requirement that changes mid-response", fontweight="bold")

    _curve(top, adherence, zero, _BLUE, "while training")
    span = max(end - zero, 1.0)
    for name, x, side in (("before", zero, "right"), ("after", end, "left")):
        if name in held_out:
            x -= zero
            one = held_out[name]
            top.errorbar(
                [x],
                [one.mean],
                yerr=[one.half or 0.0],
                fmt="o",
                color=_RED,
                markersize=8,
                zorder=4,
                clip_on=False,
            )
            top.annotate(
                f"{name}: {one}",
                (x, one.mean),
                xytext=(9 if side == "right" else -9, -15),
                textcoords="offset points",
                ha="left" if side == "right" else "right",
                color=_RED,
                fontweight="bold",
            )
    if held_out:
        top.plot([], [], "o", color=_RED, label="held-out tasks")
    top.set_ylim(0, 1.05)
    top.set_ylabel("adherence after an edit")
    top.legend(loc="lower right", frameon=False)

    _curve(bottom, loss, zero, _GREY, "loss")
    bottom.set_ylabel("loss per token")
    bottom.set_xlabel("seconds")
    bottom.set_xlim(-0.02 * span, 1.02 * span)
    for axes in (top, bottom):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    target = run_dir / FILE
    figure.savefig(target)
    return target


def _curve(
    axes: Any, curve: list[tuple[float, int | None, float]], zero: float, color: str, label: str
) -> None:
    """The raw numbers, faint, under their moving average."""
    x = [at - zero for at, _, _ in curve]
    y = [value for _, _, value in curve]
    axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(x, smooth(y), color=color, linewidth=2, label=label)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])) or "nothing to draw")
