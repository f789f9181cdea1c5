"""What text is worth under states that came after it.

An edit finds a text that was written under another state. Some of its sentences may satisfy the new
one all the same: whoever has the verifiers says which (`Pass.earlier`), and objectives may take
these for targets under the new state (`objectives/hindsight.py`).

The piece that is judged is a sentence of one pass. It is worth as much as the slot that it
satisfies least, each being the share of its units in that sentence that hold; what a requirement
misses in the whole pass (`at least 20 words`) is missing in each of its sentences. Where an edited
slot says nothing about a sentence, there is no verdict. Each text is judged by the first pass of a
state that comes after it, and by none whose state it was written under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from dynatok_online.adherence.measures import SENTENCE
from dynatok_online.adherence.passes import PassTexts
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Earlier, Trajectory

States = Mapping[str, SlotState]


def with_earlier(trajectory: Trajectory, states: Sequence[States], texts: PassTexts) -> Trajectory:
    """With what earlier text is worth under every pass. `states` and `texts`: its passes' own."""
    passes = [
        msgspec.structs.replace(one, earlier=earlier)
        for one, earlier in zip(trajectory.passes, judge_earlier(texts, states), strict=True)
    ]
    return msgspec.structs.replace(trajectory, passes=tuple(passes))


def judge_earlier(texts: PassTexts, states: Sequence[States]) -> list[tuple[Earlier, ...]]:
    """For each pass (with slots `states`), the worth of what was written before it."""
    found: list[tuple[Earlier, ...]] = [()] * len(states)
    if all(one == states[0] for one in states):
        return found
    pieces = [_sentences(texts, j, *bound) for j, bound in enumerate(texts.bounds[:-1])]
    for k, live in enumerate(states):
        # What came before an earlier pass of this state was judged there.
        first = max((j for j in range(k) if states[j] == live), default=-1) + 1
        mine: list[Earlier] = []
        for j in range(first, k):
            for start, stop, score in _scored(texts, j, pieces[j], live, states[j]):
                if mine and mine[-1].stop == start and mine[-1].score == score:
                    start = mine.pop().start
                mine.append(Earlier(start, stop, score))
        found[k] = tuple(mine)
    return found


_Piece = tuple[int, int, int, int]
"""A sentence: its first and last character in the text of its pass, and its tokens."""


def _sentences(texts: PassTexts, j: int, start: int, stop: int) -> list[_Piece]:
    """Those with a token that lies wholly in them."""
    parts = texts.parts(j)
    if parts is None or not parts[1]:
        return []
    begins = texts.begins + len(parts[0])
    edges = [0, *(match.end() for match in SENTENCE.finditer(parts[1]) if match.group())]
    out = []
    for low, high in pairwise(edges):
        first = texts.token_at(begins + low, start, stop)
        first += texts.characters(first) < begins + low
        last = texts.token_at(begins + high, start, stop)
        if first < last:
            out.append((low, high, first, last))
    return out


def _scored(
    texts: PassTexts, j: int, pieces: Sequence[_Piece], live: States, then: States
) -> list[tuple[int, int, float]]:
    """The sentences of pass `j`, written under `then`, as far as `live` says something of them."""
    if not pieces or live == then:
        return []
    before, here, after = texts.parts(j) or ("", "", "")
    edited = {slot for slot, state in live.items() if then.get(slot) != state}
    worth: list[dict[str, float]] = [{} for _ in pieces]
    for slot, state in live.items():
        if state.requirement is None:
            continue
        units = requirement(state.requirement).verify(here, before=before, after=after).units
        for (low, high, _, _), known in zip(pieces, worth, strict=True):
            inside = [
                float(unit.ok if unit.value is None else unit.value)
                for unit in units
                if (unit.start < high and unit.stop > low) or unit.start == unit.stop
            ]
            if inside:
                known[slot] = sum(inside) / len(inside)
    return [
        (first, last, min(known.values()))
        for (_, _, first, last), known in zip(pieces, worth, strict=True)
        if edited <= known.keys()
    ]
