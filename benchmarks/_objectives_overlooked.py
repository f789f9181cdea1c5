"""Gold texts of a chat model whose writer overlooks some edits and goes on as before.

A text's segments are rewritten for the states that its writer knows of. Where the asked state would
hold in the text all the same (there are no commas to leave out), another one is asked for that does
not; where there is none, or the text cannot be made to hold what its writer knows of, the edit is
followed after all. Verifiers decide.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from dynatok_online.requirements import requirement
from dynatok_online.requirements.rewrites import rewrite
from dynatok_online.tasks import writing
from dynatok_online.tasks.files import Segment, TaskRow, state_of
from dynatok_online.tasks.task import SlotState

_MARKS = str.maketrans({"!": ".", "?": ".", "[": None, "]": None})
"""What a style put into a text and a plain one does not have."""


def overlooked(row: TaskRow, rng: random.Random, share: float) -> tuple[TaskRow, int, int]:
    """The row, each of whose edits is overlooked with chance `share`; how many are, of how many."""
    assert isinstance(row.response, list)
    asked: dict[str, SlotState] = {}
    known: dict[str, SlotState] = {}
    segments: list[Segment] = []
    missed: list[tuple[int, SlotState]] = []
    edits = sum(len(one.states) for one in row.response[1:])
    for k, segment in enumerate(row.response):
        states = {slot: state_of(given) for slot, given in segment.states.items()}
        if not k:
            asked, known = dict(states), dict(states)
            segments.append(segment)
            continue
        misses = [slot for slot in states if rng.random() < share]
        before = "".join(one.text for one in segments)
        behind = "".join(one.text for one in row.response[k + 1 :])
        wanted = known | {slot: state for slot, state in states.items() if slot not in misses}
        around = before, segment.text, behind
        found = _unaware(around, wanted, asked | states, misses, rng)
        if found is None:  # this edit is followed, unless the text has gone its own way already
            if known != asked:
                return row, 0, edits
            asked |= states
            known = dict(asked)
            segments.append(segment)
            continue
        text, instead = found
        states |= instead
        asked, known = asked | states, wanted
        missed += [(k, states[slot]) for slot in misses]
        segments.append(Segment(text, dict(states)))
    texts = [one.text for one in segments]
    if not all(_fails(state, texts, k) for k, state in missed):  # what was changed later counts too
        return row, 0, edits
    return msgspec.structs.replace(row, response=segments), len(missed), edits


def _fails(state: SlotState, texts: Sequence[str], k: int) -> bool:
    """Whether part `k` clearly does not do what `state` asks for."""
    wanted = requirement(str(state.requirement))
    before, behind = "".join(texts[:k]), "".join(texts[k + 1 :])
    return wanted.verify(texts[k], before=before, after=behind).holds is False


def _unaware(
    around: tuple[str, str, str],
    known: dict[str, SlotState],
    asked: dict[str, SlotState],
    misses: Sequence[str],
    rng: random.Random,
) -> tuple[str, dict[str, SlotState]] | None:
    """The text as one writes who knows of `known` alone, and what is asked for in its stead in the
    slots of `misses`; None where that cannot be had."""
    before, text, behind = around
    if known == asked:
        return text, {}
    if any(known[slot] != asked[slot] for slot in known if slot != "case"):
        text = text.translate(_MARKS)
    text = rewrite("+".join(one.requirement for one in known.values() if one.requirement), text)
    texts = before, text, behind
    if any(_fails(state, texts, 1) for state in known.values()):
        return None
    instead = {}
    for slot in misses:
        others = [one for one in writing.STATES[slot] if one not in (known[slot], asked[slot])]
        rng.shuffle(others)
        fitting = [one for one in (asked[slot], *others) if _fails(one, texts, 1)]
        if not fitting:
            return None
        instead[slot] = fitting[0]
    return text, instead
