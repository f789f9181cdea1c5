"""Scores passes with the verifiers of what their slots asked for.

A pass is judged on the text sampled in it. A word that reaches into a neighbouring pass was
written under two states and counts for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dynatok_online.adherence.earlier import with_earlier
from dynatok_online.adherence.passes import Decode, PassTexts
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Trajectory

__all__ = ["Decode", "judged", "score_passes"]


def judged(
    trajectory: Trajectory,
    states: Sequence[Mapping[str, SlotState]],
    decode: Decode,
    *,
    thinking: bool = False,
) -> Trajectory:
    """With the score of every pass, and what earlier text is worth under it. `states`: the slots of
    each pass."""
    response = trajectory.response.tolist()
    bounds = [(one.start, one.stop) for one in trajectory.passes]
    scores = score_passes(response, bounds, states, decode, thinking=thinking)
    passes = [
        msgspec.structs.replace(one, scores=score)
        for one, score in zip(trajectory.passes, scores, strict=True)
    ]
    made = msgspec.structs.replace(trajectory, passes=tuple(passes))
    return with_earlier(made, states, decode, thinking=thinking)


def score_passes(
    response: Sequence[int],
    bounds: Sequence[tuple[int, int]],
    states: Sequence[Mapping[str, SlotState]],
    decode: Decode,
    *,
    thinking: bool = False,
) -> list[dict[str, float]]:
    """Slot -> score for each pass (response indices `bounds`, slots `states`).

    A slot without a requirement, or whose requirement found nothing to judge, is absent.
    `thinking`: the prompt has begun a thought, which the response goes on with.
    """
    texts = PassTexts(response, bounds, decode, thinking=thinking)
    scores = []
    for k, slots in enumerate(states):
        found: dict[str, float] = {}
        before, here, after = texts.parts(k) or ("", "", "")
        for slot, state in slots.items():
            if state.requirement is not None and texts.parts(k) is not None:
                verdict = requirement(state.requirement).verify(here, before=before, after=after)
                if verdict.score is not None:
                    found[slot] = verdict.score
        scores.append(found)
    return scores
