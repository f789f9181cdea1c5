"""What every actor must have heard: the latest announcement of each type, numbered.

An actor says in its heartbeats which number it has seen; what it missed is announced again.
"""

from __future__ import annotations

import time

from protocol.wire.messages import Finish, WeightsReady

Announcement = WeightsReady | Finish


class Announcements:
    """Pure bookkeeping; the channel's thread sends."""

    def __init__(self, repeat_seconds: float) -> None:
        """`repeat_seconds`: what was sent less than this ago may still be on its way."""
        self._repeat_seconds = repeat_seconds
        self._count = 0
        self._latest: dict[type, tuple[int, float, Announcement]] = {}

    def add(self, message: Announcement) -> int:
        """The number of a new announcement; it replaces the one of its type."""
        self._count += 1
        self._latest[type(message)] = (self._count, time.monotonic(), message)
        return self._count

    def missed(self, seen: int) -> list[tuple[int, Announcement]]:
        """Number and message of what an actor lacks that has seen up to `seen` (0: nothing)."""
        old_enough = time.monotonic() - self._repeat_seconds
        return [
            (number, message)
            for number, sent, message in sorted(self._latest.values(), key=lambda one: one[0])
            if number > seen and (seen == 0 or sent < old_enough)
        ]
