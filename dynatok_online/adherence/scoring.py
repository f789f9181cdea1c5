"""Scores passes with the verifiers of what their slots asked for.

A pass is judged on the text sampled in it. A word that reaches into a neighbouring pass was
written under two states and counts for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import SlotState

Decode = Callable[[Sequence[int]], str]


def score_passes(
    response: Sequence[int],
    bounds: Sequence[tuple[int, int]],
    states: Sequence[Mapping[str, SlotState]],
    decode: Decode,
) -> list[dict[str, float]]:
    """Slot -> score for each pass (response indices `bounds`, slots `states`).

    A slot without a requirement, or whose requirement found nothing to judge, is absent.
    """
    text = decode(response)
    # Decoding a prefix gives a prefix of the text, but for a last character cut in two.
    cuts = [0, *(min(len(decode(response[:stop])), len(text)) for _, stop in bounds[:-1])]
    cuts.append(len(text))
    scores = []
    for k, slots in enumerate(states):
        before, here, after = text[: cuts[k]], text[cuts[k] : cuts[k + 1]], text[cuts[k + 1] :]
        found = {}
        for slot, state in slots.items():
            if state.requirement is not None:
                verdict = requirement(state.requirement).verify(here, before=before, after=after)
                if verdict.score is not None:
                    found[slot] = verdict.score
        scores.append(found)
    return scores
