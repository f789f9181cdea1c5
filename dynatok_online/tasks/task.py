"""Tasks: a prompt with slots, what stands in them, and when that changes.

A task is plain data: the same task always asks for the same thing, in any process. The template
names its slots in double braces, `{{case}}`, and may say where the response stands,
`{{response}}` (at the end if it does not); see `dynatok_online.prompt.template`. Its edits come at
known tokens (`edits`), or when the text gives rise to them (`rules`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal

import msgspec

from dynatok_online.prompt import Prompt, Slot, Text, parse
from dynatok_online.requirements import contradiction, requirement


class SlotState(msgspec.Struct, frozen=True):
    """What stands in a slot, and the requirement (by name) that it states, if any."""

    text: str
    requirement: str | None = None


class ScheduledEdit(msgspec.Struct, frozen=True):
    """From response token `index` on, `slot` reads `state`."""

    index: int
    slot: str
    state: SlotState


class EditRule(msgspec.Struct, frozen=True):
    """`slot` reads `state` as soon as the text written since the edit before it is so far.

    `after_sentences`: it holds `count` whole sentences. `satisfied`: the latest `count` judged
    units of the slot that was edited last all hold.
    """

    slot: str
    state: SlotState
    when: Literal["after_sentences", "satisfied"] = "after_sentences"
    count: int = 1


class Task(msgspec.Struct, frozen=True):
    """One response to be written: `max_tokens` tokens at most, sampled with `seed`.

    `states` are the slots at the start; `edits` are in order of their index; `rules` wait for each
    other. ValueError for a place without a state, a state without a place, an edit out of order or
    out of the response, and for requirements in force at once that contradict each other.
    """

    task_id: str
    template: str
    states: dict[str, SlotState]
    edits: tuple[ScheduledEdit, ...] = ()
    max_tokens: int = 128
    seed: int = 0
    rules: tuple[EditRule, ...] = ()
    widths: dict[str, int] = {}
    """Slot -> tokens that it takes where slots have a fixed width (sticky reuse); else it follows
    from what may stand in it, see `dynatok_online.tasks.rendering`."""
    control_tokens: bool = False
    """Whether names of control tokens in the template's own text are control tokens: a chat
    template's are. What stands in slots is text in any case."""

    def __post_init__(self) -> None:
        places = places_of(self.template)
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
        for rule in self.rules:
            if rule.slot not in self.states:
                raise ValueError(
                    _unknown(self.task_id, "rule for", rule.slot, "slots", self.states)
                )
            if rule.count < 1:
                raise ValueError(f"task {self.task_id!r}: a rule's count must be 1 or more")
        if self.edits and self.rules:
            raise ValueError(f"task {self.task_id!r}: write edits or rules, not both")
        for name, width in self.widths.items():
            if name not in self.states:
                raise ValueError(_unknown(self.task_id, "width of", name, "slots", self.states))
            if width < 1:
                raise ValueError(f"task {self.task_id!r}: the width of {name!r} is {width}")
        for when, states in self._moments():
            for state in states.values():
                if state.requirement is not None:
                    requirement(state.requirement)
            asked = [(slot, state.requirement) for slot, state in states.items()]
            for (slot, one), (other_slot, other) in combinations(asked, 2):
                if one and other and (why := contradiction(one, other)):
                    raise ValueError(
                        f"task {self.task_id!r}: {when} slots {slot!r} and {other_slot!r} ask for "
                        f"what no text can do: {why}"
                    )

    def _moments(self) -> Iterator[tuple[str, dict[str, SlotState]]]:
        """The slots at the start and after every edit."""
        states = dict(self.states)
        yield "at the start", states
        for edit in self.edits:
            states = states | {edit.slot: edit.state}
            yield f"from token {edit.index} on", states
        for number, rule in enumerate(self.rules, 1):
            states = states | {rule.slot: rule.state}
            yield f"after rule {number}", states

    def all_states(self) -> Iterator[tuple[str, SlotState]]:
        """Every state that a slot is known to take, with the slot's name."""
        yield from self.states.items()
        yield from ((edit.slot, edit.state) for edit in self.edits)
        yield from ((rule.slot, rule.state) for rule in self.rules)

    def states_at(self, index: int) -> dict[str, SlotState]:
        """The slots in force for response token `index`."""
        states = dict(self.states)
        for edit in self.edits:
            if edit.index <= index:
                states[edit.slot] = edit.state
        return states

    @property
    def prompt(self) -> Prompt:
        """The template's parts."""
        return parse(self.template, self.control_tokens)

    def render(self, states: Mapping[str, SlotState], response: str = "") -> str:
        """The whole text in these states, with the response so far in its place."""
        out = []
        for part in self.prompt.parts:
            if isinstance(part, Text):
                out.append(part.text)
            else:
                out.append(states[part.name].text if isinstance(part, Slot) else response)
        return "".join(out)


def places_of(template: str) -> list[str]:
    """Names of the slots, in order; ValueError if one stands twice, or for other braces."""
    names = [part.name for part in parse(template).parts if isinstance(part, Slot)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{{{{{name}}}}} stands twice in the template; name each place once")
    return names


def _unknown(task: str, what: str, name: str, known: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known {known}: {', '.join(names) or 'none'}"
    return f"task {task!r}: {what} {name!r} is not among its {known}; {hint}"
