"""What came of every requirement of a response: before its edits, and after each of them.

It is judged stretch by stretch (`stretches`), whatever passes it took. Lengths are tokens. The
requirement of a slot is the task's: a trajectory holds its text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynatok_online.adherence.measures import follow
from dynatok_online.adherence.passes import Decode, PassTexts, begins_thinking
from dynatok_online.adherence.stretches import stretches
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory


@dataclass(frozen=True)
class Judged:
    """One slot of one stretch."""

    slot: str
    requirement: str
    edited: bool
    """Whether the stretch began with an edit of the slot."""
    static: bool
    """Whether no edit came before."""
    score: float
    latency: int | None
    """Tokens from the stretch's beginning to its first compliant sentence; None: there is none."""
    tokens: int
    """Tokens of the stretch."""


def judge(task: Task, trajectory: Trajectory, decode: Decode) -> list[Judged]:
    """Every slot with evidence, stretch by stretch."""
    asked = asked_for(task)
    response = trajectory.response.tolist()
    written = stretches(trajectory)
    bounds = [(one.start, one.stop) for one in written]
    texts = PassTexts(response, bounds, decode, thinking=begins_thinking(task.prompt))
    found = []
    for k, one in enumerate(written):
        parts = texts.parts(k)
        if parts is None:
            continue
        before, here, after = parts
        for slot, shown in one.passes[0].states.items():
            name = asked.get((slot, shown))
            if name is None:
                continue
            came = follow(requirement(name), here, before=before, after=after)
            if came.score is None:
                continue
            latency = came.latency
            if latency is not None:
                place = texts.begins + len(before) + latency
                latency = texts.token_at(place, one.start, one.stop) - one.start
            found.append(
                Judged(
                    slot,
                    name,
                    slot in one.edited,
                    one.static,
                    came.score,
                    latency,
                    one.stop - one.start,
                )
            )
    return found


def asked_for(task: Task) -> Mapping[tuple[str, str], str]:
    """(slot, text) -> the requirement that this text states."""
    known = task.all_states()
    return {(slot, one.text): one.requirement for slot, one in known if one.requirement}
