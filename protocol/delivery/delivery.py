"""Who holds which trajectory: pure state machines, no sockets, no clocks, no threads.

An actor numbers its trajectories from 1 within an epoch (a process start). `Outbox` keeps each
until it is acknowledged; `Inbox` holds each once, and only in order, so that one number says
what is held. Every frame that the outbox ever put away is either held by the inbox, or still in
the outbox; sending one again is always safe.

`Credits` bounds what is under way: reserved (being generated) plus unacknowledged never exceeds
what the learner grants, and the learner grants (`Grants`) less the more it holds untrained.
`Consumed` is a set of numbers that are done with, small because nearly all of them are in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from protocol.wire.messages import Offsets, Stream


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


class Grants:
    """The learner's side of `Credits`: how many trajectories each actor may have under way.

    Two bounds. Each actor may have `credits` that are not trained on, held ones included. And
    where `room` is given, no more than that many may be under way or held in all: it is shared
    out, and what one actor was granted is not granted to another until it is held, or its actor
    left.
    """

    def __init__(self, credits: int) -> None:
        self._credits = credits
        self._waiting: dict[str, int] = {}
        self._granted: dict[str, int] = {}

    def waiting(self, actor: str) -> int:
        """Trajectories of this actor that are held and not yet accepted."""
        return self._waiting.get(actor, 0)

    def held(self, actor: str) -> None:
        """One of its trajectories is held."""
        self._waiting[actor] = self.waiting(actor) + 1
        if actor in self._granted:
            self._granted[actor] = max(0, self._granted[actor] - 1)

    def accepted(self, actor: str) -> None:
        """One of its held trajectories was trained on, or dropped."""
        self._waiting[actor] = max(0, self.waiting(actor) - 1)

    def joined(self, actor: str) -> None:
        """An actor process is here: what one before it was granted is void."""
        self._granted[actor] = 0

    def left(self, actor: str) -> None:
        """It will start nothing more."""
        self._granted.pop(actor, None)

    def window(self, actor: str, room: int | None = None) -> int:
        """How many trajectories this actor may have under way now."""
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
        self.tasks: dict[str, Consumed] = {}
        """Per actor: the tasks whose trajectories were ever held."""
        self._held: dict[str, dict[int, int]] = {}
        """Of every epoch there ever was: what is acknowledged stays in an actor's journal for a
        while, and its next process may bring it again."""
        self._open: dict[str, set[int]] = {}
        """The epochs that the actor's process, the one that is here, has named."""
        self._newest: dict[str, int] = {}

    def hello(self, actor: str, epoch: int, streams: tuple[Stream, ...]) -> int | None:
        """An actor process introduced itself.

        Returns how many numbers will never come (this side lost its memory of them), or None
        where a newer process of the same actor was already here: the old one is refused.
        """
        if epoch < self._newest.get(actor, 0):
            return None
        self._newest[actor] = epoch
        held = self._held.setdefault(actor, {})
        self._open[actor] = {epoch}
        lost = 0
        for stream in streams:
            if stream.epoch > epoch:
                continue
            self._open[actor].add(stream.epoch)
            known = held.get(stream.epoch)
            if known is not None:
                lost += max(0, stream.first - 1 - known)
            held[stream.epoch] = max(known or 0, stream.first - 1)
        held.setdefault(epoch, 0)
        return lost

    def offer(self, actor: str, epoch: int, sequence: int) -> Verdict:
        """Judge a trajectory; after `NEW` the caller holds it and calls `hold`."""
        held = self._held.get(actor, {}).get(epoch)
        if held is None or epoch not in self._open.get(actor, {epoch}):
            return Verdict.UNKNOWN
        if sequence <= held:
            return Verdict.DUPLICATE
        return Verdict.NEW if sequence == held + 1 else Verdict.GAP

    def hold(self, actor: str, epoch: int, sequence: int, tasks: Iterable[int] = ()) -> None:
        """This trajectory is held from now on: also used when a journal is read again."""
        for task in tasks:
            self.tasks_of(actor).add(task)
        self._held.setdefault(actor, {})[epoch] = sequence
        self._newest[actor] = max(epoch, self._newest.get(actor, 0))

    def tasks_of(self, actor: str) -> Consumed:
        """The tasks of this actor whose trajectories were ever held."""
        return self.tasks.setdefault(actor, Consumed())

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
