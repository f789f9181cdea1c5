"""Who holds which trajectory: pure state machines, no sockets, no clocks, no threads.

An actor numbers its trajectories from 1 within an epoch (a process start). `Outbox` keeps each
until it is acknowledged; `Inbox` holds each once, and only in order, so that one number says
what is held. Every frame that the outbox ever put away is either held by the inbox, or still in
the outbox; sending one again is always safe.

`Credits` bounds what is under way: reserved (being generated) plus unacknowledged never exceeds
what the learner grants, and the learner grants less the more it holds untrained.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from protocol.messages import Stream


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


class Outbox:
    """Frames of one actor that the learner has not acknowledged, oldest first."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.sequence = 0
        """The last number given out in this epoch."""
        self._frames: dict[int, dict[int, bytes]] = {epoch: {}}

    def __len__(self) -> int:
        return sum(len(frames) for frames in self._frames.values())

    def number(self) -> int:
        """The sequence number of the next trajectory."""
        self.sequence += 1
        return self.sequence

    def put(self, epoch: int, sequence: int, frame: bytes) -> None:
        """Keep a frame until it is acknowledged. Raises OSError where there is no room for it."""
        self._frames.setdefault(epoch, {})[sequence] = frame

    def commit(self) -> None:
        """Make what was put durable; may be called from another thread. Nothing to do here."""

    def acknowledge(self, epoch: int, sequence: int) -> int:
        """Let go of everything of `epoch` up to `sequence`; how many that were."""
        frames = self._frames.get(epoch, {})
        done = 0
        for number in list(frames):
            if number > sequence:
                break
            del frames[number]
            done += 1
        if not frames and epoch != self.epoch:
            self._frames.pop(epoch, None)
        return done

    def frames(self, epoch: int | None = None, after: int = 0) -> Iterator[tuple[int, int, bytes]]:
        """(epoch, sequence, frame) of what is unacknowledged, oldest first."""
        for one in sorted(self._frames) if epoch is None else [epoch]:
            for number, frame in list(self._frames.get(one, {}).items()):
                if number > after:
                    yield one, number, frame

    def streams(self) -> tuple[Stream, ...]:
        """What it holds, for `Hello`."""
        return tuple(
            Stream(epoch, next(iter(frames), self.sequence + 1))
            for epoch, frames in sorted(self._frames.items())
        )


class Verdict(Enum):
    """What to do with a trajectory that arrived."""

    NEW = "new"
    DUPLICATE = "duplicate"
    GAP = "gap"
    """One before it is missing: ask for everything again."""
    UNKNOWN = "unknown"
    """Of an epoch that its actor never named: a replay, or a peer that skipped `Hello`."""


class Inbox:
    """What the learner holds of every actor."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, int]] = {}
        self._newest: dict[str, int] = {}

    def hello(self, actor: str, epoch: int, streams: tuple[Stream, ...]) -> int | None:
        """An actor process introduced itself.

        Returns how many numbers will never come (this side lost its memory of them), or None
        where a newer process of the same actor was already here: the old one is refused.
        """
        if epoch < self._newest.get(actor, 0):
            return None
        self._newest[actor] = epoch
        before = self._held.get(actor, {})
        held: dict[int, int] = {epoch: 0}
        lost = 0
        for stream in streams:
            known = before.get(stream.epoch)
            if stream.epoch > epoch:
                continue
            if known is not None:
                lost += max(0, stream.first - 1 - known)
            held[stream.epoch] = max(known or 0, stream.first - 1)
        held[epoch] = max(held[epoch], before.get(epoch, 0))
        self._held[actor] = held
        return lost

    def offer(self, actor: str, epoch: int, sequence: int) -> Verdict:
        """Judge a trajectory; after `NEW` the caller holds it and calls `hold`."""
        held = self._held.get(actor, {}).get(epoch)
        if held is None:
            return Verdict.UNKNOWN
        if sequence <= held:
            return Verdict.DUPLICATE
        return Verdict.NEW if sequence == held + 1 else Verdict.GAP

    def hold(self, actor: str, epoch: int, sequence: int) -> None:
        """This trajectory is held from now on: also used when a journal is read again."""
        self._held.setdefault(actor, {})[epoch] = sequence
        self._newest[actor] = max(epoch, self._newest.get(actor, 0))

    def held(self, actor: str, epoch: int) -> int:
        """The highest sequence number held (0: none)."""
        return self._held.get(actor, {}).get(epoch, 0)

    def epochs(self, actor: str) -> dict[int, int]:
        """Epoch -> highest sequence number held."""
        return dict(self._held.get(actor, {}))

    def table(self) -> dict[str, dict[int, int]]:
        """Everything it knows: what a journal stores so that old records can be deleted."""
        return {actor: dict(held) for actor, held in self._held.items()}

    def load(self, table: dict[str, dict[int, int]]) -> None:
        """Put back a table."""
        for actor, held in table.items():
            for epoch, sequence in held.items():
                self.hold(actor, epoch, sequence)
