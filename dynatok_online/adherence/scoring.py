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
    texts = PassTexts.of(trajectory, decode, thinking=thinking)
    scores = score_passes(texts, states)
    passes = [
        msgspec.structs.replace(one, scores=score)
        for one, score in zip(trajectory.passes, scores, strict=True)
    ]
    made = msgspec.structs.replace(trajectory, passes=tuple(passes))
    return with_earlier(made, states, texts)


def score_passes(
    texts: PassTexts, states: Sequence[Mapping[str, SlotState]]
) -> list[dict[str, float]]:
    """Slot -> score for each pass; `states`: the slots of each.

    A slot without a requirement, or whose requirement found nothing to judge, is absent.
    """
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
