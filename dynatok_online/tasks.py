"""Tasks: a prompt with slots, what stands in them, and when that changes.

A task is plain data: the same task always asks for the same thing, in any process. The template
names its slots in double braces, `{{case}}`, and may say where the response stands,
`{{response}}` (at the end if it does not). A slot's text has one width in all its states, so an
edit never moves a position behind it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import msgspec

from dynatok_online.requirements import requirement

RESPONSE = "response"
_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class SlotState(msgspec.Struct, frozen=True):
    """What stands in a slot, and the requirement (by name) that it states, if any."""

    text: str
    requirement: str | None = None


class ScheduledEdit(msgspec.Struct, frozen=True):
    """From response token `index` on, `slot` reads `state`."""

    index: int
    slot: str
    state: SlotState


class Task(msgspec.Struct, frozen=True):
    """One response to be written: `max_tokens` tokens at most, sampled with `seed`.

    `states` are the slots at the start; `edits` are in order of their index. ValueError for a
    place without a state, a state without a place, an edit out of order or out of the response.
    """

    task_id: str
    template: str
    states: dict[str, SlotState]
    edits: tuple[ScheduledEdit, ...] = ()
    max_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        places = [name for name in places_of(self.template) if name != RESPONSE]
        for name in places:
            if name not in self.states:
                raise ValueError(_unknown(self.task_id, "place", name, "states", self.states))
        for name in self.states:
            if name not in places:
                raise ValueError(
                    f"task {self.task_id!r}: slot {name!r} has a state but no place; "
                    f"write {{{{{name}}}}} where it stands in the template"
                )
        if self.max_tokens < 1:
            raise ValueError(
                f"task {self.task_id!r}: max_tokens is {self.max_tokens}; write 1 or more"
            )
        last = 0
        for edit in self.edits:
            if edit.slot not in self.states:
                raise ValueError(_unknown(self.task_id, "edit of", edit.slot, "slots", self.states))
            if not 0 < edit.index < self.max_tokens:
                raise ValueError(
                    f"task {self.task_id!r}: edit at token {edit.index} is outside the response; "
                    f"write an index from 1 to {self.max_tokens - 1}"
                )
            if edit.index < last:
                raise ValueError(
                    f"task {self.task_id!r}: edit at token {edit.index} comes after one at "
                    f"{last}; order the edits by index"
                )
            last = edit.index
        for state in (*self.states.values(), *(edit.state for edit in self.edits)):
            if state.requirement is not None:
                requirement(state.requirement)

    def states_at(self, index: int) -> dict[str, SlotState]:
        """The slots in force for response token `index`."""
        states = dict(self.states)
        for edit in self.edits:
            if edit.index <= index:
                states[edit.slot] = edit.state
        return states

    def render(self, states: Mapping[str, SlotState], response: str = "") -> str:
        """The whole text in these states, with the response so far in its place."""
        texts = {name: state.text for name, state in states.items()} | {RESPONSE: response}
        template = self.template
        if RESPONSE not in places_of(template):
            template += "{{" + RESPONSE + "}}"
        return _PLACE.sub(lambda match: texts[match.group(1)], template)


def places_of(template: str) -> list[str]:
    """Names in double braces, in order; ValueError if one stands twice."""
    names = _PLACE.findall(template)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{{{{{name}}}}} stands twice in the template; name each place once")
    return names


def _unknown(task: str, what: str, name: str, known: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known {known}: {', '.join(names) or 'none'}"
    return f"task {task!r}: {what} {name!r} is not among its {known}; {hint}"
