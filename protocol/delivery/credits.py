"""How many trajectories may exist that are not trained on: pure state machines.

`Credits` bounds what an actor may start: reserved (being generated) plus unacknowledged never
exceeds what the learner grants, and the learner grants (`Grants`) less the more it stores
untrained.
"""

from __future__ import annotations


class Grants:
    """The learner's side of `Credits`: how many trajectories each actor may have in flight.

    Two bounds. Each actor may have `credits` that are not trained on, stored ones included. And
    where `room` is given, no more than that many may be in flight or stored in all: it is shared
    out, and what one actor was granted is not granted to another until it is stored, or its actor
    left.
    """

    def __init__(self, credits: int) -> None:
        self._credits = credits
        self._waiting: dict[str, int] = {}
        self._granted: dict[str, int] = {}

    def waiting(self, actor: str) -> int:
        """Trajectories of this actor that are stored and not yet accepted."""
        return self._waiting.get(actor, 0)

    def stored(self, actor: str) -> None:
        """One of its trajectories is stored."""
        self._waiting[actor] = self.waiting(actor) + 1
        if actor in self._granted:
            self._granted[actor] = max(0, self._granted[actor] - 1)

    def accepted(self, actor: str) -> None:
        """One of its stored trajectories was trained on, or dropped."""
        self._waiting[actor] = max(0, self.waiting(actor) - 1)

    def joined(self, actor: str) -> None:
        """An actor process is here: what one before it was granted is void."""
        self._granted[actor] = 0

    def left(self, actor: str) -> None:
        """It will start nothing more."""
        self._granted.pop(actor, None)

    def window(self, actor: str, room: int | None = None) -> int:
        """How many trajectories this actor may have in flight now."""
        limit = max(0, self._credits - self.waiting(actor))
        if room is None:
            return limit
        before = self._granted.setdefault(actor, 0)
        free = max(0, room - sum(self._waiting.values()))
        others = sum(self._granted.values()) - before
        fair = -(-free // len(self._granted))
        granted = max(0, min(limit, free - others, max(before, fair)))
        self._granted[actor] = granted
        return granted


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
