"""Gold trajectories without anybody writing them: plain texts, rewritten under random edits.

A text that a model wrote to a plain prompt is cut at places where edits come, and each segment is
rewritten so that it satisfies the states that were in force for it. Every segment is checked by
the requirement's own verifier. Segments are tokenised one by one, so an edit falls exactly on its
border, and the whole ends with the stop token.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from dynatok_online.requirements import requirement
from dynatok_online.requirements.rewrites import rewrite
from dynatok_online.tasks import ScheduledEdit, SlotState, Task

_BORDER = re.compile(r"(?<=\S) (?=\S)")
_SENTENCE_BORDER = re.compile(r"(?<=[.!?]) (?=\S)")

LEAST_WORDS = 12
"""Words of a segment, at least."""

Change = Callable[[dict[str, SlotState]], tuple[str, SlotState]]


@dataclass(frozen=True)
class Gold:
    """A task whose edits come where the text was cut, and the text's tokens."""

    task: Task
    tokens: list[int]


def tidy(text: str, most_words: int) -> str:
    """The text on one line, cut behind a whole sentence of at most so many words; may be empty."""
    text = re.sub(r"[*#_`\[\]]", "", " ".join(text.split())).strip()
    words = [match.end() for match in re.finditer(r"\S+", text)]
    if len(words) > most_words:
        text = text[: words[most_words - 1]]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


def make_gold(
    text: str,
    task: Task,
    change: Change,
    rng: random.Random,
    encode: Callable[[str], list[int]],
    *,
    stop: int,
    edits: int,
    least_words: int = LEAST_WORDS,
) -> Gold | None:
    """The gold of one plain text under `edits` random edits; `task` gives template and states.

    Half of the edits fall on the ends of sentences, as far as there are any; segments have at
    least so many words. None where the text is too short for that, or where a segment could not
    be made to satisfy its verifiers.
    """
    cuts = _cuts(text, edits, least_words, rng)
    if cuts is None:
        return None
    live = dict(task.states)
    tokens: list[int] = []
    made: list[ScheduledEdit] = []
    segments: list[tuple[str, dict[str, SlotState]]] = []
    for start, stop_at in pairwise([0, *cuts, len(text)]):
        if start:
            slot, state = change(live)
            live = live | {slot: state}
            made.append(ScheduledEdit(len(tokens), slot, state))
        names = [state.requirement for state in live.values() if state.requirement]
        segment = rewrite("+".join(names), text[start:stop_at]) if names else text[start:stop_at]
        segments.append((segment, live))
        tokens += encode(segment)
    if not _holds(segments):
        return None
    tokens.append(stop)
    # Not `replace`: what the task asked for is checked again with its edits.
    return Gold(
        Task(
            task_id=task.task_id,
            template=task.template,
            states=task.states,
            edits=tuple(made),
            max_tokens=len(tokens),
            seed=task.seed,
        ),
        tokens,
    )


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
