"""The actors that are connected: by their connection, and by their name.

An actor that was started again has a new connection before the old one is given up; the newest
one that said hello is the actor's *current* one.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from protocol.wire.envelope import Sealer


class PeerInfo(NamedTuple):
    """A connected actor. `serving` is the weight version of its last heartbeat (-1: none)."""

    actor: str
    epoch: int
    serving: int
    silent_seconds: float
    waiting: int
    """Its trajectories that are stored and not yet accepted."""


class Peer:
    """One connection of one actor process."""

    def __init__(self, identity: bytes, actor: str, epoch: int, sealer: Sealer) -> None:
        self.identity = identity
        self.actor = actor
        self.epoch = epoch
        self.sealer = sealer
        self.heard = time.monotonic()
        self.serving = -1
        self.told = 0
        """Credits that it was last told of."""
        self.refused = False
        self.gap_asked = 0.0
        self._due: dict[int, bool] = {}

    def acknowledge_later(self, epoch: int, resend: bool = False) -> None:
        """Tell it what is stored of an epoch, once for all that comes meanwhile.

        `resend`: ask for everything after that again.
        """
        self._due[epoch] = self._due.get(epoch, False) or resend

    def take_due(self) -> dict[int, bool]:
        """Epochs to acknowledge now, and whether to ask for more of each."""
        due, self._due = self._due, {}
        return due


class Peers:
    """Changed by the channel's thread alone; any thread may ask for `current` ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_identity: dict[bytes, Peer] = {}
        self._current: dict[str, Peer] = {}

    def find(self, identity: bytes) -> Peer | None:
        """Who speaks on this connection."""
        return self._by_identity.get(identity)

    def of(self, actor: str) -> Peer | None:
        """The current connection of an actor."""
        return self._current.get(actor)

    def all(self) -> list[Peer]:
        """Every connection that is not given up."""
        return list(self._by_identity.values())

    def current(self) -> list[Peer]:
        """One connection for each actor."""
        with self._lock:
            return list(self._current.values())

    def enter(self, peer: Peer) -> None:
        """It said hello, and is its actor's current connection."""
        with self._lock:
            self._by_identity[peer.identity] = peer
            self._current[peer.actor] = peer

    def leave(self, peer: Peer) -> bool:
        """Give a connection up; whether its actor has no other."""
        with self._lock:
            self._by_identity.pop(peer.identity, None)
            if self._current.get(peer.actor) is not peer:
                return False
            del self._current[peer.actor]
            return True
