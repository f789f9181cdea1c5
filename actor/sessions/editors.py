"""Who decides edits. A session asks its editor before every pass.

An edit that is known ahead ends the pass before it exactly at its index: no token is sampled
that will be thrown away. An edit that comes as a surprise (a person, see `LiveSession.edit`)
aborts the pass and keeps what has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynatok_online.tasks.task import ScheduledEdit, SlotState


@dataclass(frozen=True)
class PlannedEdit:
    """A change of one slot, asked for at a response index by `source`."""

    slot: str
    state: SlotState
    requested_at: int
    source: str


class Editor(Protocol):
    """Decides edits of one session."""

    def due(self, index: int) -> Sequence[PlannedEdit]:
        """Edits in force from response token `index` on, not given before; in order."""
        ...

    def next_index(self, index: int) -> int | None:
        """The lowest index above `index` at which an edit is already known to come."""
        ...


class Schedule:
    """The edits that a task lists."""

    def __init__(self, edits: Sequence[ScheduledEdit]) -> None:
        self._edits = sorted(edits, key=lambda edit: edit.index)
        self._given = 0

    def due(self, index: int) -> Sequence[PlannedEdit]:
        """See `Editor`."""
        first = self._given
        while self._given < len(self._edits) and self._edits[self._given].index <= index:
            self._given += 1
        return [
            PlannedEdit(edit.slot, edit.state, edit.index, "schedule")
            for edit in self._edits[first : self._given]
        ]

    def next_index(self, index: int) -> int | None:
        """See `Editor`."""
        return next((edit.index for edit in self._edits if edit.index > index), None)
