"""The spans of one trajectory as a figure: which pass holds which span, and what each span sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynatok_online.spans.build import Spans, build_spans
from dynatok_online.trajectory import Trajectory
from launch.decode import ConfigError

_COLOURS = ("#3b78d8", "#c2662d", "#2e8b57", "#a34fa0", "#8a7f12", "#148a9c", "#c0392b", "#7356c9")


def visibility(spans: Spans) -> npt.NDArray[np.bool_]:
    """[N, N] whether the token of a row sees that of a column, in packed order."""
    mask = np.zeros((len(spans.input_ids),) * 2, bool)
    for s, length in enumerate(spans.lengths):
        rows = slice(spans.bounds[s], spans.bounds[s + 1])
        for t in spans.seen[spans.seen_bounds[s] : spans.seen_bounds[s + 1]]:
            mask[rows, spans.bounds[t] : spans.bounds[t + 1]] = True
        mask[rows, rows] = np.tri(length, dtype=bool)
    return mask


def draw(trajectory: Trajectory, path: Path) -> None:
    """Write the figure; the format follows the file's name. Raises ConfigError."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--png needs matplotlib: pip install matplotlib") from error
    spans = build_spans([trajectory])
    owner = _owners(spans)
    figure = Figure(figsize=(10, 4.6), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))

    reach = np.zeros(len(owner), int)  # how far the passes so far hold each span
    for reader, k in enumerate(spans.reader_pass):
        held = spans.reader_spans[spans.reader_bounds[reader] : spans.reader_bounds[reader + 1]]
        for s in held:
            start = int(spans.position_ids[spans.bounds[s]])
            stop = min(start + int(spans.lengths[s]), trajectory.kv_length(k))
            known = min(max(int(reach[s]), start), stop)
            reach[s] = max(reach[s], stop)
            look = {"y": k - 0.36, "height": 0.72, "linewidth": 0.8}
            colour = _COLOURS[owner[s] % len(_COLOURS)]
            left.add_patch(_box(start, known, facecolor="white", edgecolor=colour, **look))
            left.add_patch(_box(known, stop, facecolor=colour, edgecolor="white", **look))
    longest = max(trajectory.kv_length(k) for k in range(len(trajectory.passes)))
    left.set_xlim(0, longest)
    left.set_ylim(len(trajectory.passes) - 0.5, -0.5)
    left.set_yticks(range(len(trajectory.passes)))
    left.set_xlabel("position")
    left.set_ylabel("pass")
    left.set_title("spans: computed (filled) and reused (hatched)", fontsize=10)

    seen = visibility(spans)
    colours = np.repeat(owner % len(_COLOURS) + 1, spans.lengths)
    picture = np.where(seen, colours[None, :], 0)
    right.imshow(
        picture,
        cmap=ListedColormap(["white", *_COLOURS]),
        vmin=0,
        vmax=len(_COLOURS),
        interpolation="nearest",
    )
    for bound in spans.bounds[1:-1]:
        right.axhline(bound - 0.5, color="#00000030", linewidth=0.5)
        right.axvline(bound - 0.5, color="#00000030", linewidth=0.5)
    right.set_xlabel("sees token")
    right.set_ylabel("packed token")
    right.set_title(f"visibility of {len(spans.lengths)} spans", fontsize=10)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--png {path}: {error}") from error


def _owners(spans: Spans) -> npt.NDArray[np.int64]:
    """[S] the first pass that holds each span: the one that computed it."""
    owner = np.full(len(spans.lengths), -1)
    for reader in reversed(range(len(spans.reader_pass))):
        held = spans.reader_spans[spans.reader_bounds[reader] : spans.reader_bounds[reader + 1]]
        owner[held] = spans.reader_pass[reader]
    return owner


def _box(start: int, stop: int, *, y: float, height: float, **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    hatch = "/////" if look["facecolor"] == "white" else None
    return Rectangle((start, y), stop - start, height, hatch=hatch, **look)
