"""What counts as *after an edit*: the one place that says so.

A response is a row of stretches, each written from one edit to the next. The edit decides, not the
pass: new weights and preemption cut a stretch into several passes and change nothing of what is
asked for. So a stretch has one score per slot, the mean over its passes weighted by their tokens,
and each edit has one vote, whatever cut the text that follows it.

*Static* adherence is the mean score of every slot over the stretches before a response's first
edit; adherence *after edit* is the mean score of the edited slots over the stretches that an edit
began. Where a verifier found nothing to judge there is no evidence, and nothing counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dynatok_online.trajectory import Pass, Trajectory


class Stretch(NamedTuple):
    """Response tokens `start .. stop`, written under one set of slot states."""

    start: int
    stop: int
    passes: tuple[Pass, ...]
    edited: frozenset[str]
    """The slots whose edit it follows; empty for one that no edit began."""
    static: bool
    """Whether no edit came before its end."""


class Scored(NamedTuple):
    """One slot of one stretch, as far as there is evidence."""

    slot: str
    score: float
    """In [0, 1]."""
    passes: int
    """How many passes gave evidence."""
    edited: bool
    """Whether the stretch began with an edit of this slot."""
    static: bool
    """Whether no edit came before."""


def stretches(trajectory: Trajectory) -> list[Stretch]:
    """The stretches of a response, in order."""
    edits: dict[int, set[str]] = {}
    for edit in trajectory.edits:
        edits.setdefault(edit.effective_at, set()).add(edit.slot)
    first = min(edits, default=len(trajectory.response) + 1)
    groups: list[list[Pass]] = []
    for one in trajectory.passes:
        if not groups or one.start in edits:
            groups.append([])
        groups[-1].append(one)
    return [
        Stretch(
            group[0].start,
            group[-1].stop,
            tuple(group),
            frozenset(edits.get(group[0].start, ())),
            group[0].start < first,
        )
        for group in groups
    ]


def scores(trajectory: Trajectory) -> list[Scored]:
    """Every slot with evidence of every stretch, from the scores that the passes carry."""
    found = []
    for one in stretches(trajectory):
        for slot in dict.fromkeys(slot for each in one.passes for slot in each.scores):
            score, passes = _mean(one.passes, slot)
            found.append(Scored(slot, score, passes, slot in one.edited, one.static))
    return found


def edited_scores(trajectories: Iterable[Trajectory]) -> list[float]:
    """The score of every edit with evidence."""
    return [one.score for each in trajectories for one in scores(each) if one.edited]


def _mean(passes: Iterable[Pass], slot: str) -> tuple[float, int]:
    """Weighted by tokens; and over how many passes."""
    known = [(one.scores[slot], one.stop - one.start) for one in passes if slot in one.scores]
    return sum(s * n for s, n in known) / sum(n for _, n in known), len(known)
