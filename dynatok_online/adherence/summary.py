"""Adherence before and after edits, from the scores that trajectories carry.

*Static* adherence is the mean score of every slot over the passes before a response's first edit;
adherence *after edit* is the mean score of the edited slot over the passes that follow an edit. A
pass in which the verifier found nothing to judge is no evidence and does not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dynatok_online.trajectory import Trajectory


def edited_scores(trajectory: Trajectory) -> list[tuple[str, float]]:
    """(slot, score) of each edited slot in each pass that follows an edit."""
    found = []
    for one in trajectory.passes:
        edited = {edit.slot for edit in trajectory.edits if edit.effective_at == one.start}
        found += [(slot, score) for slot, score in one.scores.items() if slot in edited]
    return found


def static_scores(trajectory: Trajectory) -> list[tuple[str, float]]:
    """(slot, score) of every slot in the passes before the first edit."""
    first = min((edit.effective_at for edit in trajectory.edits), default=len(trajectory.response))
    return [
        (slot, score)
        for one in trajectory.passes
        if one.start < first
        for slot, score in one.scores.items()
    ]


def summarize(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Means and counts; `by_slot` breaks them down."""
    after: dict[str, list[float]] = defaultdict(list)
    static: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        for slot, score in edited_scores(trajectory):
            after[slot].append(score)
        for slot, score in static_scores(trajectory):
            static[slot].append(score)
    all_after = [score for scores in after.values() for score in scores]
    all_static = [score for scores in static.values() for score in scores]
    return {
        "adherence_after_edit": _mean(all_after),
        "passes_after_edit": len(all_after),
        "adherence_static": _mean(all_static),
        "passes_static": len(all_static),
        "by_slot": {
            slot: {
                "adherence_after_edit": _mean(after[slot]),
                "passes_after_edit": len(after[slot]),
                "adherence_static": _mean(static[slot]),
                "passes_static": len(static[slot]),
            }
            for slot in sorted(after.keys() | static.keys())
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
