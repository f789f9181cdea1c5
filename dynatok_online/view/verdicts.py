"""What the verifiers say about each pass, as ranges of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynatok_online.adherence.passes import thought_end
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import SlotState
from dynatok_online.view.texts import TokenTexts


def verdict(
    texts: TokenTexts, bounds: Sequence[tuple[int, int]], k: int, states: Mapping[str, SlotState]
) -> dict[str, Any]:
    """Scores and judged units of pass `k`: `{"scores": {slot: share}, "units": [...]}`.

    A unit is `[slot, first token, last token, holds]`, in response indices. As in
    `dynatok_online.adherence.scoring`, a word that reaches into another pass counts for neither.
    """
    start, stop = bounds[k]
    before, here, after = texts.text(0, start), texts.text(start, stop), texts.text(stop)
    offset = texts.starts[start] if start < len(texts.starts) else 0
    scores: dict[str, float] = {}
    units: list[list[Any]] = []
    if thought := thought_end(before + here + after):
        own = max(0, thought - offset)  # of this pass
        if own >= len(here):
            return {"scores": scores, "units": units}
        before, here, offset = before[thought:], here[own:], offset + own
    for slot, state in states.items():
        if state.requirement is None:
            continue
        found = requirement(state.requirement).verify(here, before=before, after=after)
        if found.score is not None:
            scores[slot] = found.score
        for unit in found.units:
            # What is missing is a unit without text, at the end of the pass.
            first = min(texts.token_at(offset + unit.start), stop - 1)
            last = max(first, texts.token_at(offset + unit.stop - 1))
            units.append([slot, first, last, unit.ok])
    return {"scores": scores, "units": units}
