"""Tasks as people write them: one JSON object per line, or rows of any data set.

    {"prompt": "Write about the harbor. Letters: {{case}}\nText: ",
     "slots": {"case": ["upper", "lower", {"text": "as you like"}]},
     "edits": [{"at": 40, "slot": "case", "to": "lower"}], "max_tokens": 120}

A slot lists its possible states, first the one that it starts in; a string is the name of a
requirement, whose own text stands in the slot. Instead of `edits`, a `schedule` makes them by rule:

    {"rule": "random", "edits": [1, 3], "gap": 16}      at random tokens, from the task's seed
    {"rule": "every", "tokens": 40, "edits": 2}         at tokens 40 and 80
    {"rule": "after_sentences", "count": 2, "edits": 3} after every second sentence
    {"rule": "satisfied", "count": 3, "edits": 2}       once three judged units in a row hold
    {"rule": "replay", "path": "session.jsonl"}         the edits of a recorded session

Instead of `prompt`, `messages` holds chat messages. A `response` is a gold text to train on, whole
or in segments, each with the states that it was written under (see `dynatok_online.tasks.gold`).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Literal

import msgspec

from dynatok_online.data.storage import read_trajectories
from dynatok_online.requirements import requirement
from dynatok_online.tasks.task import EditRule, ScheduledEdit, SlotState, Task, places_of

Split = Literal["train", "heldout"]
StateRow = str | SlotState
Chat = Callable[..., str]
"""Chat messages, and `control=True` where names of control tokens in them are meant -> template;
see `dynatok_online.prompt.from_chat`."""


class EditRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From response token `at` on, `slot` reads `to`."""

    at: int
    slot: str
    to: StateRow


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a gold response, written while these slots read so; other slots stay as before."""

    text: str
    states: dict[str, StateRow] = {}


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How edits are made by rule; see the module's docstring."""

    rule: Literal["random", "every", "after_sentences", "satisfied", "replay"]
    edits: int | tuple[int, int] = (1, 3)
    """How many, or least and most."""
    gap: int = 16
    """`random`: least number of tokens before, between and after edits."""
    tokens: int = 32
    """`every`: tokens between two edits."""
    count: int = 1
    """Sentences to wait for, or units that must hold in a row."""
    path: str = ""
    """`replay`: a file of recorded trajectories, of which the task takes one."""


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of a task file."""

    task_id: str = ""
    prompt: str = ""
    messages: list[dict[str, str]] = []
    control_tokens: bool = False
    """Whether names of control tokens (`<|im_end|>`) in the prompt, the messages or the response
    are control tokens; else they are text, as they are in slots in any case."""
    slots: dict[str, StateRow | list[StateRow]] = {}
    edits: list[EditRow] = []
    schedule: Schedule | None = None
    max_tokens: int = 128
    seed: int | None = None
    response: str | list[Segment] | None = None
    stop: bool = True
    """Whether the model's stop token ends the gold response."""
    widths: dict[str, int] = {}
    """Slot -> tokens that it takes under sticky reuse; else as many as may be expected."""
    split: Split | None = None


def read_row(raw: Any) -> TaskRow:
    """The row in a decoded JSON object. ValueError says which field is wrong."""
    try:
        return msgspec.convert(_without_nulls(raw), TaskRow)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _without_nulls(raw: Any) -> Any:
    """Without what tables fill in: a field that one row lacks and another has."""
    if isinstance(raw, dict):
        return {key: _without_nulls(value) for key, value in raw.items() if value is not None}
    if isinstance(raw, list):
        return [_without_nulls(value) for value in raw]
    return raw


def split_of(row: TaskRow) -> Split:
    """Where a row belongs: as it says, else one row in ten, by its name, is held out."""
    if row.split is not None:
        return row.split
    return "heldout" if zlib.crc32(row.task_id.encode()) % 10 == 0 else "train"


def make_task(row: TaskRow, *, seed: int = 0, epoch: int = 0, chat: Chat | None = None) -> Task:
    """The task of a row; the same for the same arguments. ValueError says what is wrong with it."""
    if bool(row.prompt) == bool(row.messages):
        raise ValueError("write either 'prompt' or 'messages'")
    template = row.prompt
    if row.messages:
        if chat is None:
            raise ValueError("chat messages need a model with a chat template; write 'prompt'")
        template = chat(row.messages, control=True) if row.control_tokens else chat(row.messages)
    choices = {
        slot: [state_of(one) for one in (states if isinstance(states, list) else [states])]
        for slot, states in row.slots.items()
    }
    for slot in places_of(template):
        if not choices.get(slot):
            raise ValueError(
                f"slot {{{{{slot}}}}} stands in the text, but 'slots' does not say what it holds; "
                f'add "slots": {{"{slot}": ["upper", "lower"]}}, or write '
                f'{{{{"{{{{{slot}}}}}"}}}} where the text itself says so'
            )
    rng = random.Random(f"{seed}/{epoch}/{row.task_id}" if row.seed is None else row.seed + epoch)
    task = Task(
        task_id=row.task_id if epoch == 0 else f"{row.task_id}@{epoch}",
        template=template,
        states={slot: states[0] for slot, states in choices.items()},
        edits=tuple(ScheduledEdit(one.at, one.slot, state_of(one.to)) for one in row.edits),
        max_tokens=row.max_tokens,
        seed=rng.randrange(2**31),
        widths=row.widths,
        control_tokens=row.control_tokens or bool(row.messages),
    )
    if row.schedule is None:
        return task
    if row.edits:
        raise ValueError("write either 'edits' or a 'schedule'")
    return _scheduled(task, row.schedule, choices, rng)


def state_of(given: StateRow) -> SlotState:
    """The state that a row writes as the name of a requirement, or as a text."""
    if isinstance(given, SlotState):
        return given
    try:
        return SlotState(requirement(given).text, given)
    except ValueError as error:
        raise ValueError(f'{error}; for a text of your own, write {{"text": "..."}}') from None


def _scheduled(
    task: Task, schedule: Schedule, choices: Mapping[str, Sequence[SlotState]], rng: random.Random
) -> Task:
    """The task with edits by rule. States that contradict another slot's are not drawn."""
    if schedule.rule == "replay":
        return _replayed(task, schedule.path, choices, rng)
    least, most = (
        (schedule.edits, schedule.edits) if isinstance(schedule.edits, int) else schedule.edits
    )
    number = rng.randint(least, most)
    if schedule.rule == "random":
        room = task.max_tokens - schedule.gap * (number + 1)
        if room < 0:
            raise ValueError(
                f"{number} edits, {schedule.gap} tokens apart, do not fit into {task.max_tokens} "
                "tokens; write fewer edits, a smaller gap or a larger max_tokens"
            )
        drawn = sorted(rng.choices(range(room + 1), k=number))
        at = [schedule.gap * (i + 1) + extra for i, extra in enumerate(drawn)]
    else:
        at = [schedule.tokens * (i + 1) for i in range(number)]
    changes = _changes(task, choices, number, rng)
    if schedule.rule == "random" or schedule.rule == "every":
        edits = tuple(ScheduledEdit(i, *change) for i, change in zip(at, changes, strict=True))
        return msgspec.structs.replace(task, edits=edits)
    rules = tuple(EditRule(*change, schedule.rule, schedule.count) for change in changes)
    return msgspec.structs.replace(task, rules=rules)


def _changes(
    task: Task, choices: Mapping[str, Sequence[SlotState]], number: int, rng: random.Random
) -> list[tuple[str, SlotState]]:
    live, changes = dict(task.states), []
    for _ in range(number):
        options = [
            (slot, state)
            for slot, states in choices.items()
            for state in states
            if state != live[slot] and _possible(task, live | {slot: state})
        ]
        if not options:
            raise ValueError(
                "a schedule needs a slot with another state to go to; list two or more states "
                'of a slot, as in "slots": {"case": ["upper", "lower"]}'
            )
        slots = sorted({slot for slot, _ in options})
        chosen = rng.choice(slots)
        slot, state = rng.choice([one for one in options if one[0] == chosen])
        live[slot] = state
        changes.append((slot, state))
    return changes


def _possible(task: Task, states: dict[str, SlotState]) -> bool:
    try:
        msgspec.structs.replace(task, states=states)
    except ValueError:
        return False
    return True


def _replayed(
    task: Task, path: str, choices: Mapping[str, Sequence[SlotState]], rng: random.Random
) -> Task:
    recorded = [one for one in read_trajectories(path) if one.edits]
    if not recorded:
        raise ValueError(f"{path} holds no trajectory with edits; record a session first")
    known = {(slot, state.text): state for slot, states in choices.items() for state in states}
    edits = tuple(
        ScheduledEdit(
            one.effective_at,
            one.slot,
            known.get((one.slot, one.text.rstrip()), SlotState(one.text)),
        )
        for one in rng.choice(recorded).edits
        if 0 < one.effective_at < task.max_tokens
    )
    return msgspec.structs.replace(task, edits=edits)


def tasks_of(
    rows: Sequence[tuple[TaskRow, str]], split: Split, *, seed: int = 0, chat: Chat | None = None
) -> Iterator[Task]:
    """Tasks without end: the rows of a split again and again, drawn anew each time.

    `rows` come with the place where they stand, for errors. All rows where the split has none;
    ValueError where there is none at all.
    """
    if not rows:
        raise ValueError("there is no usable task: every row was bad")
    chosen = [one for one in rows if split_of(one[0]) == split] or rows
    for epoch in count():
        for row, where in chosen:
            try:
                task = make_task(row, seed=seed, epoch=epoch, chat=chat)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            yield task
