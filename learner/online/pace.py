"""How far actors may run ahead: as far as the next batch needs to be there just in time.

`staleness` says what may still be trained on. That is the most that may exist, not what should:
what waits for its turn grows older. So the number in flight or waiting follows the learner. Where
a batch was there whenever it was wanted, and more than it was left each time, half of what was
never needed is taken back; where the learner had to wait, as much of a batch is added as of a
step's time it waited. A pure state machine, without clocks or threads.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 8
"""Steps over which what was left is looked at: a cut shows when what is in flight has come."""
TOLERATED: Final = 0.02
"""Share of a step's time that the learner may wait without anything being added."""


class Pace:
    """A bound on what is in flight or waiting; `limit` None: none yet."""

    def __init__(self, per_step: int) -> None:
        """`per_step`: trajectories of a batch; there is always leave for so many."""
        self.limit: float | None = None
        self._per_step = per_step
        self._left: list[int] = []
        self._busy = 0.0
        self._added = 0.0

    def room(self, most: int) -> int:
        """How many may be in flight or waiting, where staleness allows `most`."""
        if self.limit is None:
            return most
        return min(most, int(self.limit + self._added))

    def waits(self, seconds: float) -> None:
        """The learner has waited so long for its batch, and still does. Before its first step there
        is nothing to hold that against."""
        if self._busy:
            self._added = self._per_step * seconds / self._busy

    def took(self, left: int, flying: int, waited: float, busy: float) -> None:
        """A batch was taken.

        `left`: what waits beside it. `flying`: what actors have leave for and have not sent.
        `waited`: seconds that the learner waited for it, after `busy` seconds of its own work.
        """
        self._busy = busy
        self.waits(waited)
        added, self._added = self._added, 0.0
        if waited > TOLERATED * (waited + busy):
            self._left.clear()
            if self.limit is not None:
                self.limit += added
            return
        self._left.append(left)
        if len(self._left) < WINDOW:
            return
        spare = min(self._left) // 2
        self._left.clear()
        if spare:
            self.limit = max(self._per_step, self._per_step + left + flying - spare)
