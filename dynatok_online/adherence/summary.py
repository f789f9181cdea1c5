"""Adherence before and after edits over many responses, each share with its count and interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dynatok_online.adherence.measures import half_width, interval
from dynatok_online.adherence.stretches import Scored, scores
from dynatok_online.trajectory import Trajectory


def summarize(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Means and counts; `by_slot` breaks them down.

    `adherence_after_edit` is a mean over `edits_judged` edits, whose text lies in
    `passes_after_edit` passes; `..._half` is half the width of its 95 % interval (None for fewer
    than two). `adherence_static` is the same of the slots before a response's first edit.
    """
    found = [one for trajectory in trajectories for one in scores(trajectory)]
    slots = sorted({one.slot for one in found if one.edited or one.static})
    return {
        **_shares(found),
        "by_slot": {slot: _shares([one for one in found if one.slot == slot]) for slot in slots},
    }


def share(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half the width of its 95 % interval (None: unknown), and over how many values."""
    if not values:
        return {"mean": None, "half": None, "count": 0}
    one = interval(values)
    return {"mean": one.mean, "half": half_width(one), "count": one.count}


def said(mean: float | None, half: float | None) -> str:
    """A share for people: `0.713 ± 0.052`."""
    if mean is None:
        return "unknown"
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def _shares(found: Sequence[Scored]) -> dict[str, Any]:
    edited = [one for one in found if one.edited]
    static = [one for one in found if one.static]
    after, before = (share([one.score for one in part]) for part in (edited, static))
    return {
        "adherence_after_edit": after["mean"],
        "adherence_after_edit_half": after["half"],
        "edits_judged": after["count"],
        "passes_after_edit": sum(one.passes for one in edited),
        "adherence_static": before["mean"],
        "adherence_static_half": before["half"],
        "passes_static": sum(one.passes for one in static),
    }
