"""How a task's prompt becomes token ids: for sessions, gold data and the page alike.

A model must be trained on the ids that it is later asked with, so everything that feeds a task to
a model takes its renderer from here.
"""

from __future__ import annotations

from collections.abc import Callable

from dynatok_online.prompt import Encoder, Placement, Renderer, late
from dynatok_online.requirements import REQUIREMENTS, requirement
from dynatok_online.tasks.task import Task

ROOM = 4
"""Tokens that a slot of fixed width has beyond the longest text that is expected in it."""


def renderer_of(
    task: Task,
    encode: Encoder | Callable[[str], list[int]],
    *,
    fixed_width: bool = False,
    placement: Placement = "head",
    slot_width: int = 0,
) -> Renderer:
    """The renderer of a task's prompt.

    With `fixed_width` (sticky reuse, where positions must not move) every slot takes the same
    number of tokens in every state: the larger of the task's `widths` and `slot_width`, else room
    for every text that may be expected in it; and never less than the task's own states need.
    """
    renderer = Renderer(task.prompt if placement == "head" else late(task.prompt), encode)
    if fixed_width or slot_width:
        renderer.widths = _widths(task, renderer, slot_width)
    return renderer


def _widths(task: Task, renderer: Renderer, slot_width: int) -> dict[str, int]:
    widths: dict[str, int] = {}
    for slot, state in task.all_states():
        widths[slot] = max(widths.get(slot, 0), renderer.length(slot, state.text))
    for slot, known in widths.items():
        given = max(task.widths.get(slot, 0), slot_width)
        if given:
            widths[slot] = max(known, given)
        else:
            offered = [renderer.length(slot, text) for text in _offered(task, slot)]
            widths[slot] = max([known, *offered]) + ROOM
    return widths


def _offered(task: Task, slot: str) -> set[str]:
    """What the families of a slot's requirements would write in it."""
    families = {
        part
        for name, state in task.all_states()
        if name == slot and state.requirement is not None
        for part in requirement(state.requirement).family.split("+")
    }
    return {one.text for one in REQUIREMENTS.values() if one.family in families}


def border_notes(
    task: Task, encode: Encoder | Callable[[str], list[int]], placement: Placement = "head"
) -> list[str]:
    """Borders of a task's prompt where pieces are not cut as the tokenizer would, and how they are.

    Looked for in every state that the task knows. The model then reads text that is joined a
    little unlike what it was trained on; rewording the template mends it.
    """
    renderer = renderer_of(task, encode, placement=placement)
    notes = dict.fromkeys(renderer.uncertain)
    for at in (0, *(edit.index for edit in task.edits)):
        states = {name: state.text for name, state in task.states_at(at).items()}
        notes |= {
            f"{border}: cut here, where the tokenizer would join": None
            for border in renderer.differences(states)
        }
    return list(notes)
