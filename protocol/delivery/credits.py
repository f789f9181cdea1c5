"""How many trajectories may exist that are not trained on: pure state machines.

`Credits` bounds what an actor may start: reserved (being generated) plus unacknowledged never
exceeds what the learner grants, and the learner grants (`Grants`) less the more it stores
untrained.
"""

from __future__ import annotations

from collections.abc import Callable


class Grants:
    """The learner's side of `Credits`: how many trajectories each actor may have in flight.

    Two bounds. Each actor may have `credits` that are not trained on, stored ones included. And
    where `room` is given, no more than that many may be in flight or stored in all: it is shared
    out, and what one actor was granted is not granted to another until it is stored, or its actor
    left. Where there is less room than actors, they take turns: who has no credit waits in a
    line, and what becomes free goes to the first in it (`feed`).
    """

    def __init__(self, credits: int) -> None:
        self._credits = credits
        self._waiting: dict[str, int] = {}
        self._granted: dict[str, int] = {}
        self._stored = 0
        """All that wait."""
        self._flying = 0
        """All that is granted."""
        self._line: dict[str, None] = {}
        """Actors without a credit, in the order in which they came to be so."""

    def waiting(self, actor: str) -> int:
        """Trajectories of this actor that are stored and not yet accepted."""
        return self._waiting.get(actor, 0)

    @property
    def flying(self) -> int:
        """All that is granted and not stored."""
        return self._flying

    def stored(self, actor: str) -> None:
        """One of its trajectories is stored."""
        self._waiting[actor] = self.waiting(actor) + 1
        self._stored += 1
        if self._granted.get(actor):
            self._granted[actor] -= 1
            self._flying -= 1

    def accepted(self, actor: str) -> None:
        """One of its stored trajectories was trained on, or dropped."""
        if self.waiting(actor):
            self._waiting[actor] -= 1
            self._stored -= 1

    def worth_telling(self, actor: str, told: int) -> bool:
        """Whether an actor that was told of so many credits could use to hear of its others now."""
        limit = self._credits - self.waiting(actor)
        return limit > told and (2 * told < limit or limit - told >= self._credits / 8)

    def joined(self, actor: str) -> None:
        """An actor process is here: what one before it was granted is void."""
        self._grant(actor, 0)

    def left(self, actor: str) -> None:
        """It will start nothing more."""
        self._flying -= self._granted.pop(actor, 0)
        self._line.pop(actor, None)

    def window(self, actor: str, room: int | None = None) -> int:
        """How many trajectories this actor may have in flight now."""
        limit = max(0, self._credits - self.waiting(actor))
        if room is None:
            return limit
        before = self._granted.setdefault(actor, 0)
        free = max(0, room - self._stored)
        others = self._flying - before
        # Who waits in line comes before those who would have more, and before those behind.
        fair = 0 if self._line else -(-free // len(self._granted))
        self._grant(actor, max(0, min(limit, free - others, max(before, fair))))
        if limit and not self._granted[actor]:
            self._line.setdefault(actor)
        return self._granted[actor]

    def feed(self, room: Callable[[str], int]) -> list[str]:
        """Who of those in line has a credit now. `room`: by actor, as for `window`."""
        fed = []
        for actor in list(self._line):
            if self.waiting(actor) < self._credits and self._stored + self._flying < room(actor):
                del self._line[actor]
                self._grant(actor, 1)
                fed.append(actor)
        return fed

    def _grant(self, actor: str, number: int) -> None:
        self._flying += number - self._granted.get(actor, 0)
        self._granted[actor] = number


class Credits:
    """An actor's leave to start trajectories."""

    def __init__(self, granted: int = 0) -> None:
        self.granted = granted
        self.reserved = 0

    def free(self, unacknowledged: int) -> int:
        """How many more trajectories may be started."""
        return max(0, self.granted - self.reserved - unacknowledged)

    def reserve(self, unacknowledged: int) -> bool:
        """Take a credit for a trajectory about to start; False where there is none."""
        if self.free(unacknowledged) == 0:
            return False
        self.reserved += 1
        return True

    def give_back(self) -> None:
        """A reserved trajectory was dropped, or has just gone into the outbox."""
        assert self.reserved > 0, "gave back a credit that was not taken"
        self.reserved -= 1
