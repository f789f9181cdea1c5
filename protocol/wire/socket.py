"""What both ends of the connection share: socket options and the counters of what was refused.

Every socket has a deadline for closing, a limit on the size of a message (libzmq drops the peer
before it would allocate more), and its own heartbeat, so a cable that was pulled is noticed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import zmq

from protocol.config import ProtocolConfig
from protocol.wire.envelope import Rejected

_QUEUED_MESSAGES: Final = 10_000
_CONNECT_MS: Final = 3000
"""A connection that is not made by then is tried anew. Left to itself, the kernel asks once more
after ever longer times: half a minute after a cut of a minute nobody was back."""


def new_epoch() -> int:
    """A number for a process that is starting: larger than that of any start before it."""
    return time.time_ns() // 1_000_000


def apply_options(socket: zmq.Socket[Any], config: ProtocolConfig) -> None:
    """Limits and deadlines that every socket of a run has."""
    # Header and names come on top of the payload; the exact limit is checked when opening.
    socket.setsockopt(zmq.MAXMSGSIZE, config.max_message_bytes + 4096)
    socket.setsockopt(zmq.LINGER, int(config.linger_seconds * 1000))
    socket.setsockopt(zmq.SNDHWM, _QUEUED_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
    # Of the connection, beside our own: it need only notice that it is dead.
    every = max(config.heartbeat_seconds, config.dead_after_seconds / 4)
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(every * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(config.dead_after_seconds * 1000))
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)


class Refusals:
    """How often messages were refused, by cause; and the last words of each cause."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.last: dict[str, str] = {}

    def add(self, rejected: Rejected) -> None:
        """Count one."""
        self.count(rejected.cause, str(rejected))

    def count(self, cause: str, text: str) -> None:
        """Count one by its cause."""
        self._counts[cause] += 1
        self.last[cause] = text

    @property
    def counts(self) -> Mapping[str, int]:
        """Cause -> number, as of now."""
        return dict(self._counts)
