"""What offline training reads: collected trajectories, or gold responses under scripted edits.

A row with `pieces` is a trajectory (`dynatok_online.trajectory`). A row with `response` is a task
row (`dynatok_online.tasks.files`) whose gold text somebody wrote: its passes are those that an
engine with this reuse policy would have run. The text is whole, with edits at token numbers, or a
list of segments, and then each edit falls on the border of two of them:

    "response": [{"text": "THE SEA. ", "states": {"case": "upper"}},
                 {"text": "the hill.", "states": {"case": "lower"}}]

Unless the row says `"stop": false`, the model's stop token follows, so that it learns to stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from dynatok_online.adherence.earlier import with_earlier
from dynatok_online.adherence.passes import Decode, PassTexts, begins_thinking
from dynatok_online.data.storage import OnBad, read_rows
from dynatok_online.prompt import Encoder, Placement
from dynatok_online.tasks.files import Chat, Segment, TaskRow, make_task, read_row, state_of
from dynatok_online.tasks.rendering import renderer_of
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, Task
from dynatok_online.trajectory import Trajectory, from_row


def load_training_data(
    path: str | os.PathLike[str],
    *,
    encode: Encoder | Callable[[str], list[int]],
    chat: Callable[[], Chat],
    reuse: str = "exact",
    placement: Placement = "head",
    block_size: int = 1,
    seed: int = 0,
    on_bad: OnBad | None = None,
    judge: Decode | None = None,
) -> list[Trajectory]:
    """Every trajectory of a file or folder.

    `encode` to `block_size` matter for gold responses only; with `reuse` `both` every other one is
    exact, the others sticky. With `judge`, which decodes tokens, they also say what earlier text is
    worth under later states (`Pass.earlier`). ValueError names the line of a broken row; where
    `on_bad` is given it is told instead, and the row left out.
    """
    encoder = Encoder.of(encode)
    turn: Chat | None = None
    out = []
    for number, (raw, where) in enumerate(read_rows(path, on_bad), 1):
        try:
            if not isinstance(raw, dict) or not {"pieces", "response"} & raw.keys():
                raise ValueError(
                    "is neither a trajectory (it has no 'pieces') nor a task with a gold 'response'"
                )
            if "pieces" in raw:
                out.append(from_row(raw))
                continue
            row = read_row(raw)
            if row.messages and turn is None:
                turn = chat()
            row = msgspec.structs.replace(row, task_id=row.task_id or f"row-{number}")
            task, tokens, stopped = gold(row, encoder, placement=placement, seed=seed, chat=turn)
            made = scripted_trajectory(
                task,
                tokens,
                encoder,
                reuse=("exact", "sticky")[len(out) % 2] if reuse == "both" else reuse,
                block_size=block_size,
                placement=placement,
                stopped=stopped,
            )
            if judge is not None:
                states = [task.states_at(one.start) for one in made.passes]
                thinking = begins_thinking(task.prompt)
                made = with_earlier(made, states, PassTexts.of(made, judge, thinking=thinking))
            out.append(made)
        except ValueError as error:
            if on_bad is None:
                raise ValueError(f"{where}: {error}") from error
            on_bad(f"{where}: {error}")
    return out


def gold(
    row: TaskRow,
    encoder: Encoder,
    *,
    placement: Placement = "head",
    seed: int = 0,
    chat: Chat | None = None,
) -> tuple[Task, list[int], bool]:
    """A row's task, the tokens of its gold response, and whether they end in a stop token.

    ValueError says what is wrong with it.
    """
    segments = [Segment(row.response)] if isinstance(row.response, str) else row.response or []
    if not any(one.text for one in segments):
        raise ValueError("the gold response is empty")
    if any(one.states for one in segments):
        if row.edits or row.schedule is not None:
            raise ValueError("write either 'edits' (or a 'schedule') or segments with states")
        row = msgspec.structs.replace(row, slots=_first_states(row, segments[0]))
    bare = msgspec.structs.replace(row, edits=[], schedule=None)
    renderer = renderer_of(make_task(bare, seed=seed, chat=chat), encoder, placement=placement)
    parts = renderer.response_ids([one.text for one in segments], row.control_tokens)
    tokens = [token for part in parts for token in part]
    stop = encoder.turn_stop if row.messages else encoder.stop
    if stopped := row.stop and stop is not None:
        tokens.append(stop)
    row = msgspec.structs.replace(row, max_tokens=max(row.max_tokens, len(tokens)))
    task = make_task(row, seed=seed, chat=chat)
    if task.rules:
        raise ValueError("a gold response needs edits at known tokens: rule random or every")
    if any(one.states for one in segments):
        task = msgspec.structs.replace(task, edits=_edits(task, segments, parts))
    return task, tokens, stopped


def _first_states(row: TaskRow, first: Segment) -> dict[str, object]:
    """The row's slots, beginning with the states of the first segment."""
    slots: dict[str, object] = dict(row.slots)
    for slot, state in first.states.items():
        known = row.slots.get(slot, [])
        others = known if isinstance(known, list) else [known]
        slots[slot] = [state, *(one for one in others if one != state)]
    return slots


def _edits(
    task: Task, segments: Sequence[Segment], parts: Sequence[Sequence[int]]
) -> tuple[ScheduledEdit, ...]:
    """An edit where a segment begins under another state than the one before."""
    live, edits, at = dict(task.states), [], 0
    for number, (segment, ids) in enumerate(zip(segments, parts, strict=True), 1):
        if not ids:
            raise ValueError(f"segment {number} of the gold response has no token of its own")
        for slot, given in segment.states.items():
            state = state_of(given)
            if at and live.get(slot) != state:
                edits.append(ScheduledEdit(at, slot, state))
                live[slot] = state
        at += len(ids)
    return tuple(edits)
