"""Which trajectories may still be trained on: a pure state machine, without clocks or threads.

Let `version` be the newest published weights and `oldest` the version that sampled a
trajectory's oldest token. The trajectory may be trained on while

    version - oldest <= max_policy_lag.

It may be started while it would still be that new when its turn comes, with `per_version`
trajectories trained on per version:

    started and not yet taken < (version + 1 + max_policy_lag) * per_version - taken

so that with `max_policy_lag` 0 the two sides alternate: exactly the trajectories of one version
are sampled, all of them are trained on, and the next version is published. What comes out older
than that all the same (a response that ran through an update, an actor that was away) is dropped
by its oldest token, when it is offered and again whenever weights are published.

Each one that is offered ends in exactly one place: taken once, dropped with a cause, or
still waiting. `offered == taken + sum(dropped.values()) + len(buffer)` always holds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

ARRIVED_STALE = "arrived_stale"
"""Cause of a drop: too old when it came. The actor's trajectories are too long, or it is slow."""

WAITED_STALE = "waited_stale"
"""Cause of a drop: new enough when it came, but too old when weights were published. The
learner is too slow for what the actor sends."""


def room(version: int, max_policy_lag: int, per_version: int, taken: int) -> int:
    """How many trajectories may exist that are not yet taken, while `version` serves.

    `version` counts from the first one of this learner process, and `taken` since its start.
    """
    return max(0, (version + 1 + max_policy_lag) * per_version - taken)


class StalenessBuffer(Generic[T]):
    """First in, first out, with a bound on age counted in weight versions.

    `per_version`: trajectories trained on between two versions. `first_version`: the first one
    that this process publishes. `group`: what items that are to be taken together have in common.
    """

    def __init__(
        self,
        max_policy_lag: int,
        per_version: int = 1,
        first_version: int = 0,
        group: Callable[[T], Hashable] | None = None,
    ) -> None:
        if max_policy_lag < 0:
            raise ValueError(f"max_policy_lag must be at least 0, got {max_policy_lag}")
        self.max_policy_lag = max_policy_lag
        self._group = group
        self._per_version = per_version
        self._first_version = first_version
        self.version = first_version
        """Newest published weights."""
        self.offered = 0
        self.taken = 0
        self.policy_lag_max = 0
        """Largest lag of a trajectory that was taken."""
        self.dropped: Counter[str] = Counter()
        """How many were dropped, by cause."""
        self._waiting: deque[tuple[int, T]] = deque()
        self._taken_before = 0

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on counting from before a restart; what waited then is offered again."""
        prefix = "dropped_"
        for cause in (ARRIVED_STALE, WAITED_STALE):
            self.dropped[cause] = counts.get(prefix + cause, 0)
        self.taken = self._taken_before = counts.get("taken", 0)
        self.policy_lag_max = counts.get("policy_lag_max", 0)
        self.offered = self.taken + sum(self.dropped.values())

    def waiting(self) -> list[T]:
        """Those that wait, the longest first; they stay."""
        return [item for _, item in self._waiting]

    def __len__(self) -> int:
        return len(self._waiting)

    def room(self, serving: int) -> int:
        """How many may be in flight or waiting, as far as an actor of this version may add."""
        version = serving - self._first_version
        taken = self.taken - self._taken_before
        return room(version, self.max_policy_lag, self._per_version, taken)

    def offer(self, item: T, oldest: int) -> bool:
        """Let `item` wait, whose oldest token was sampled by version `oldest`; False: dropped."""
        self.offered += 1
        if self.version - oldest > self.max_policy_lag:
            self.dropped[ARRIVED_STALE] += 1
            return False
        self._waiting.append((oldest, item))
        return True

    def advance(self, version: int) -> list[T]:
        """Weights of `version` were published. Returns what had to be dropped for it."""
        if version < self.version:
            raise ValueError(f"weight versions only grow, but {version} follows {self.version}")
        self.version = version
        stale = [item for oldest, item in self._waiting if version - oldest > self.max_policy_lag]
        if stale:
            self.dropped[WAITED_STALE] += len(stale)
            self._waiting = deque(
                (oldest, item)
                for oldest, item in self._waiting
                if version - oldest <= self.max_policy_lag
            )
        return stale

    def take(self, count: int) -> list[T] | None:
        """The `count` that wait longest, each with those of its group behind it; None while there
        are fewer."""
        if len(self._waiting) < count:
            return None
        if self._group is not None:
            groups: dict[Hashable, list[tuple[int, T]]] = {}
            for one in self._waiting:
                groups.setdefault(self._group(one[1]), []).append(one)
            self._waiting = deque(one for group in groups.values() for one in group)
        out = []
        for _ in range(count):
            oldest, item = self._waiting.popleft()
            self.policy_lag_max = max(self.policy_lag_max, self.version - oldest)
            out.append(item)
        self.taken += count
        return out
