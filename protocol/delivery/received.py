"""What the learner's channel hands on, and where it is stored before it is acknowledged."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from protocol.wire.messages import ActorMessage, Offsets


class PeerLost(NamedTuple):
    """Not a message: an actor was silent for `dead_after_seconds`, or was replaced."""

    reason: str


class Received(NamedTuple):
    """A message and where it came from.

    `sequence` is above 0 for trajectories (and `Skipped`) only. `record` is its index in the
    store, None without one.
    """

    actor: str
    epoch: int
    sequence: int
    message: ActorMessage | PeerLost
    record: int | None = None


class Store(Protocol):
    """Where trajectories are put before they are acknowledged."""

    def append(self, frame: bytes) -> int:
        """Write a frame, return its index. Raises OSError where there is no room: not stored."""

    def commit(self) -> None:
        """What was appended is on disk when this returns."""

    def checkpointed(self, consumed: Offsets) -> int:
        """A checkpoint that includes these records is on disk: they may be deleted."""
