"""Which finished trajectories may be trained on, and why the others may not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from actor.sessions.live_session import Finished

IN_A_ROW = 100
"""So many responses in a row that cannot be used mean that something is wrong."""
UNAUDITED_IN_A_ROW = 2000
"""Events lost once cost all responses in flight; so many in a row, that they are lost for ever."""


@dataclass
class Usable:
    """Looks at every trajectory before it goes anywhere, and counts what does not."""

    dropped: Counter[str] = field(default_factory=Counter)
    """By cause. `empty`: without a token. `contradicted`: the engine's reports of its cache do
    not fit together, so nobody can say what the response was sampled from. `unaudited`: some of
    these reports are lost."""
    problems: list[str] = field(default_factory=list)
    """The first reports of the engine that cannot be true."""
    _in_a_row: int = 0
    _unaudited_in_a_row: int = 0

    def take(self, finished: Finished) -> bool:
        """Whether it may be used. Raises ValueError after too many in a row that may not."""
        self.problems += finished.problems[: max(0, 20 - len(self.problems))]
        if finished.unaudited:
            self.dropped["unaudited"] += 1
            self._unaudited_in_a_row += 1
            if self._unaudited_in_a_row == UNAUDITED_IN_A_ROW:
                raise ValueError(
                    f"{UNAUDITED_IN_A_ROW} responses in a row could not be audited: "
                    f"{finished.unaudited}"
                )
            return False
        self._unaudited_in_a_row = 0
        if finished.problems:
            cause, why = "contradicted", f"the engine contradicts itself: {finished.problems[0]}"
        elif len(finished.trajectory.response) == 0:
            cause = "empty"
            why = (
                "no room for a response: the prompts fill the engine's context; write shorter "
                "ones, or set the engine's max_model_len higher"
            )
        else:
            self._in_a_row = 0
            return True
        self.dropped[cause] += 1
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise ValueError(f"{IN_A_ROW} tasks in a row gave nothing to train on; {why}")
        return False
