"""Who has which trajectory: pure state machines, no sockets, no clocks, no threads.

An actor numbers its trajectories from 1 within an epoch (a process start). `Outbox` keeps each
until it is acknowledged; `Receipts` takes each once, and only in order, so that one number says
what the learner has. Every frame that was ever put into the outbox is either receipted or still
in the outbox; sending one again is always safe.

`Consumed` is a set of numbers that are done with, small because nearly all of them are in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from protocol.wire.messages import Backlog, Offsets


class Consumed:
    """Numbers that are done with: all below `low`, and some beyond.

    Records of a journal, or tasks of an actor. Neither ends strictly in order, so a single
    number is not enough.
    """

    def __init__(self, low: int = 0, beyond: Iterable[int] = ()) -> None:
        self.low = low
        self._beyond = set(beyond)

    def add(self, number: int) -> None:
        """This one is done with."""
        self.add_all(Offsets(0, (number,)))

    def add_all(self, other: Offsets) -> None:
        """So are these."""
        if other.low > self.low:
            self.low = other.low
            self._beyond = {number for number in self._beyond if number >= self.low}
        self._beyond.update(number for number in other.beyond if number >= self.low)
        while self.low in self._beyond:
            self._beyond.remove(self.low)
            self.low += 1

    def __contains__(self, number: int) -> bool:
        return number < self.low or number in self._beyond

    def state(self) -> Offsets:
        """For a checkpoint, or a message."""
        return Offsets(self.low, tuple(sorted(self._beyond)))


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
        """Forget everything of `epoch` up to `sequence`; how many that were."""
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

    def streams(self) -> tuple[Backlog, ...]:
        """What is in it, for `Hello`."""
        return tuple(
            Backlog(epoch, next(iter(frames), self.sequence + 1))
            for epoch, frames in sorted(self._frames.items())
        )


class Arrival(Enum):
    """What to do with a trajectory that arrived."""

    NEW = "new"
    DUPLICATE = "duplicate"
    GAP = "gap"
    """One before it is missing: ask for everything again."""
    UNKNOWN = "unknown"
    """Of an epoch that its actor never named: a replay, or a peer that skipped `Hello`."""


class Receipts:
    """What the learner has received of every actor, each trajectory once and in order."""

    def __init__(self) -> None:
        self.tasks: dict[str, Consumed] = {}
        """Per actor: the tasks whose trajectories ever came."""
        self._last: dict[str, dict[int, int]] = {}
        """Of every epoch there ever was: what is acknowledged stays in an actor's journal for a
        while, and its next process may bring it again."""
        self._open: dict[str, set[int]] = {}
        """The epochs that the actor's process, the one that is here, has named."""
        self._newest: dict[str, int] = {}

    def hello(self, actor: str, epoch: int, streams: tuple[Backlog, ...]) -> int | None:
        """An actor process introduced itself.

        Returns how many numbers will never come (this side lost its memory of them), or None
        where a newer process of the same actor was already here: the old one is refused.
        """
        if epoch < self._newest.get(actor, 0):
            return None
        self._newest[actor] = epoch
        last = self._last.setdefault(actor, {})
        self._open[actor] = {epoch}
        lost = 0
        for backlog in streams:
            if backlog.epoch > epoch:
                continue
            self._open[actor].add(backlog.epoch)
            known = last.get(backlog.epoch)
            if known is not None:
                lost += max(0, backlog.first - 1 - known)
            last[backlog.epoch] = max(known or 0, backlog.first - 1)
        last.setdefault(epoch, 0)
        return lost

    def offer(self, actor: str, epoch: int, sequence: int) -> Arrival:
        """Judge a trajectory; after `NEW` the caller stores it and calls `add`."""
        last = self._last.get(actor, {}).get(epoch)
        if last is None or epoch not in self._open.get(actor, {epoch}):
            return Arrival.UNKNOWN
        if sequence <= last:
            return Arrival.DUPLICATE
        return Arrival.NEW if sequence == last + 1 else Arrival.GAP

    def add(self, actor: str, epoch: int, sequence: int, tasks: Iterable[int] = ()) -> None:
        """This trajectory is stored: also used when a journal is read again."""
        for task in tasks:
            self.tasks_of(actor).add(task)
        self._last.setdefault(actor, {})[epoch] = sequence
        self._newest[actor] = max(epoch, self._newest.get(actor, 0))

    def tasks_of(self, actor: str) -> Consumed:
        """The tasks of this actor whose trajectories ever came."""
        return self.tasks.setdefault(actor, Consumed())

    def last(self, actor: str, epoch: int) -> int:
        """The highest sequence number that came (0: none)."""
        return self._last.get(actor, {}).get(epoch, 0)

    def table(self) -> dict[str, dict[int, int]]:
        """Everything it knows: what a journal stores so that old records can be deleted."""
        return {actor: dict(last) for actor, last in self._last.items()}

    def load(self, table: dict[str, dict[int, int]]) -> None:
        """Put back a table."""
        for actor, last in table.items():
            for epoch, sequence in last.items():
                self.add(actor, epoch, sequence)
