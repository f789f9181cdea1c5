"""How much of what would be right a model still says: an objective must not win by collapsing.

After T. Sorensen et al., "Spectrum Tuning", 2025: several responses to one task are *valid* as far
as their requirements hold, *unique* as far as their texts differ, and what counts is how many are
both. Judged is the last stretch of a response, the text since its last edit: all responses to one
task end under the same states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dynatok_online.adherence.measures import follow
from dynatok_online.adherence.outcomes import asked_for
from dynatok_online.adherence.passes import Decode, PassTexts, begins_thinking
from dynatok_online.adherence.stretches import stretches
from dynatok_online.adherence.summary import share
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory


class Ending(NamedTuple):
    """The text since the last edit, blanks as one."""

    text: str
    valid: bool
    """Whether every requirement that found something to judge holds in all of it."""


def ending(task: Task, trajectory: Trajectory, decode: Decode) -> Ending | None:
    """The last stretch of a response; None where there is nothing to judge in it."""
    written = stretches(trajectory)
    if not written:
        return None
    texts = PassTexts(
        trajectory.response.tolist(),
        [(one.start, one.stop) for one in written],
        decode,
        thinking=begins_thinking(task.prompt),
    )
    parts = texts.parts(len(written) - 1)
    if parts is None:
        return None
    before, here, after = parts
    asked = asked_for(task)
    names = [asked.get(one) for one in written[-1].passes[0].states.items()]
    scores = [
        follow(requirement(name), here, before=before, after=after).score for name in names if name
    ]
    known = [one for one in scores if one is not None]
    return Ending(" ".join(here.split()), min(known) == 1) if known else None


def coverage(groups: Sequence[Sequence[Ending | None]]) -> dict[str, dict[str, Any]]:
    """`valid`, `unique` and `distinct_valid` as shares of the responses to a task: mean over tasks,
    half of the 95 % interval, and the number of tasks. `groups`: the endings, task by task.

    By hand: the endings a, a, b, c of which a and b are valid are 0.75 valid, 0.75 unique and 0.5
    distinct valid. A response with nothing to judge is neither.
    """
    found: dict[str, list[float]] = {"valid": [], "unique": [], "distinct_valid": []}
    for group in groups:
        if not group:
            continue
        known = [one for one in group if one is not None]
        found["valid"].append(sum(one.valid for one in known) / len(group))
        found["unique"].append(len({one.text for one in known}) / len(group))
        found["distinct_valid"].append(len({o.text for o in known if o.valid}) / len(group))
    return {name: share(values) for name, values in found.items()}
