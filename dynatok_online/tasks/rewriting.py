"""Gold responses without anybody writing them: a plain text, rewritten under random edits.

A text that a model wrote to a plain prompt is cut at places where edits come, and each segment is
rewritten so that it satisfies the states in force for it. Every segment is checked by the
requirement's own verifier. The segments are a task row's `response` (see `gold`), so an edit falls
exactly on the border of two of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec

from dynatok_online.prompt import parse
from dynatok_online.requirements import requirement
from dynatok_online.requirements.rewrites import rewrite
from dynatok_online.tasks.files import Segment, TaskRow
from dynatok_online.tasks.task import SlotState

_BORDER = re.compile(r"(?<=\S) (?=\S)")
_SENTENCE_BORDER = re.compile(r"(?<=[.!?]) (?=\S)")

LEAST_WORDS = 12
"""Words of a segment, at least."""

Change = Callable[[dict[str, SlotState]], tuple[str, SlotState]]
"""The slots as they are -> which one is edited, and its new state."""


def plain_row(row: TaskRow) -> TaskRow:
    """The row without the lines that hold its slots: the same request with no requirement.

    ValueError where nothing is left to ask for.
    """
    messages = [{**one, "content": _without_slots(one["content"])} for one in row.messages]
    prompt = _without_slots(row.prompt)
    if not (prompt.strip() or any(one["content"].strip() for one in messages)):
        raise ValueError("nothing is left without the lines that hold slots; give slots their own")
    return msgspec.structs.replace(
        row,
        prompt=prompt,
        messages=messages,
        slots={},
        edits=[],
        schedule=None,
        response=None,
        widths={},
    )


def _without_slots(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not parse(line).slots)


def tidy(text: str, most_words: int) -> str:
    """The text on one line, cut behind a whole sentence of at most so many words; may be empty."""
    text = re.sub(r"[*#_`\[\]]", "", " ".join(text.split())).strip()
    words = [match.end() for match in re.finditer(r"\S+", text)]
    if len(words) > most_words:
        text = text[: words[most_words - 1]]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


def rewritten(
    text: str,
    states: Mapping[str, SlotState],
    change: Change,
    rng: random.Random,
    *,
    edits: int,
    least_words: int = LEAST_WORDS,
) -> list[Segment] | None:
    """The text in segments, each rewritten for the states that it names, edits between them.

    Half of the edits fall on the ends of sentences, as far as there are any; segments have at
    least so many words. None where the text is too short for that, or where a segment could not
    be made to satisfy its verifiers.
    """
    cuts = _cuts(text, edits, least_words, rng)
    if cuts is None:
        return None
    live = dict(states)
    changed = live
    segments: list[Segment] = []
    written: list[tuple[str, dict[str, SlotState]]] = []
    for start, stop in pairwise([0, *cuts, len(text)]):
        if start:
            slot, state = change(live)
            live, changed = live | {slot: state}, {slot: state}
        names = [state.requirement for state in live.values() if state.requirement]
        segment = rewrite("+".join(names), text[start:stop]) if names else text[start:stop]
        segments.append(Segment(segment, dict(changed)))
        written.append((segment, live))
    return segments if _holds(written) else None


def _cuts(text: str, edits: int, least_words: int, rng: random.Random) -> list[int] | None:
    """Where the segments begin: at the blank before a word. None where there is no room."""
    words = [match.start() for match in _BORDER.finditer(text)]
    sentences = {match.start() for match in _SENTENCE_BORDER.finditer(text)}
    room = len(words) + 1 - least_words * (edits + 1)
    if room < 0:
        return None
    offsets = sorted(rng.randrange(room + 1) for _ in range(edits))
    cuts = [words[least_words * (i + 1) + offset - 1] for i, offset in enumerate(offsets)]
    place = {at: i for i, at in enumerate(words)}
    for i, at in enumerate(cuts):
        if rng.random() < 0.5:
            near = min(sentences, key=lambda one: abs(one - at), default=at)
            low = place[cuts[i - 1]] if i else -1
            high = place[cuts[i + 1]] if i + 1 < len(cuts) else len(words)
            if low + least_words <= place[near] <= high - least_words:
                cuts[i] = near
    return cuts


def _holds(segments: list[tuple[str, dict[str, SlotState]]]) -> bool:
    """Whether every segment satisfies what was asked for when it was written."""
    texts = [text for text, _ in segments]
    for i, (text, states) in enumerate(segments):
        for state in states.values():
            if state.requirement is None:
                continue
            verdict = requirement(state.requirement).verify(
                text, before="".join(texts[:i]), after="".join(texts[i + 1 :])
            )
            if verdict.holds is False:
                return False
    return True
