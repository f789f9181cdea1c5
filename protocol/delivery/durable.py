"""Both ends' trajectories on disk, so that they survive the process: `delivery` on `journal`.

Actor: a frame is written before it is sent, and forgotten when it is acknowledged. Learner: a
frame is on disk before it is acknowledged, and forgotten when a checkpoint that includes its
training is on disk; that checkpoint stores which ones were consumed. Between the two, every
trajectory is in at least one journal, and is trained on once relative to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from protocol.delivery.delivery import Consumed, Outbox, Receipts
from protocol.delivery.journal import Journal
from protocol.delivery.received import Received
from protocol.wire.codec import decode_actor, encode
from protocol.wire.envelope import Rejected, Sealer, unseal
from protocol.wire.messages import Offsets, Skipped, TrajectoryMessage
from protocol.wire.socket import new_epoch

_ENVELOPE: Final = 4096
"""More than header and names of a frame take."""


class JournaledOutbox(Outbox):
    """An outbox that a killed actor finds again. Give it to `ActorChannel`."""

    def __init__(
        self,
        folder: Path,
        run_id: str,
        actor_id: str,
        *,
        max_bytes: int = 2**30,
        segment_bytes: int = 8 * 2**20,
        max_message_bytes: int = 16 * 2**20,
    ) -> None:
        self.journal = Journal(
            folder,
            max_bytes=max_bytes,
            segment_bytes=segment_bytes,
            max_record_bytes=max_message_bytes + _ENVELOPE,
        )
        self._indices: dict[tuple[int, int], int] = {}
        self._unreadable = _Unreadable(folder, run_id)
        kept: list[tuple[int, int, bytes]] = []
        for index, frame in self.journal.records():
            try:
                envelope = unseal(frame, run_id, len(frame))
                if envelope.actor != actor_id:
                    raise Rejected("peer", f"belongs to actor '{envelope.actor}'")
            except Rejected as rejected:
                self._unreadable.add(rejected)
                continue
            try:
                unseal(frame, run_id, max_message_bytes)
                decode_actor(envelope.payload)
            except Rejected as rejected:
                # The learner would refuse it for ever, and all behind it would wait.
                self._unreadable.add(rejected)
                frame = _skipped(run_id, actor_id, envelope.epoch, envelope.sequence, rejected)
            kept.append((envelope.epoch, envelope.sequence, frame))
            self._indices[envelope.epoch, envelope.sequence] = index
        self._unreadable.check(self.journal, len(kept))
        super().__init__(max([new_epoch(), *(epoch + 1 for epoch, _, _ in kept)]))
        before: dict[int, int] = {}
        damaged = Rejected("damaged", "its record in the outbox was damaged")
        for epoch, sequence, frame in kept:
            # A number that never comes would block all behind it: say that it was lost.
            for lost in range(before.get(epoch, sequence - 1) + 1, sequence):
                super().put(epoch, lost, _skipped(run_id, actor_id, epoch, lost, damaged))
            before[epoch] = sequence
            super().put(epoch, sequence, frame)

    def problems(self) -> list[str]:
        """What was found wrong when it was opened, for people."""
        return self._unreadable.problems(self.journal)

    def put(self, epoch: int, sequence: int, frame: bytes) -> None:
        """Write a frame. Raises `JournalFull`; then it is not in the outbox."""
        self._indices[epoch, sequence] = self.journal.append(frame)
        super().put(epoch, sequence, frame)

    def commit(self) -> None:
        """Make everything put so far survive the machine, not just the process."""
        self.journal.commit()

    def acknowledge(self, epoch: int, sequence: int) -> int:
        """Forget what the learner has stored."""
        for number in list(self._frames.get(epoch, ())):
            if number > sequence:
                break
            self._indices.pop((epoch, number), None)
        done = super().acknowledge(epoch, sequence)
        if done:  # indices were added in ascending order: the first one is the lowest
            self.journal.release(next(iter(self._indices.values()), self.journal.next_index))
        return done

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


def _skipped(run_id: str, actor_id: str, epoch: int, sequence: int, why: Rejected) -> bytes:
    return Sealer(run_id, actor_id).seal(encode(Skipped(str(why))), epoch, sequence)


class _Unreadable:
    """Counts records that cannot be used; where none can, the journal is somebody else's."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self.count = 0
        self._last: Rejected | None = None

    def add(self, rejected: Rejected) -> None:
        """One more."""
        self.count += 1
        self._last = rejected

    def check(self, journal: Journal, readable: int) -> None:
        """Raise ValueError where records are there and none can be used."""
        if self.count and not readable:
            journal.close()
            raise ValueError(
                f"none of the {self.count} records of the journal {self._folder} can be used: "
                f"{self._last}; was the run folder renamed? Give it its old name back, or delete "
                "the journal to give its trajectories up"
            )

    def problems(self, journal: Journal) -> list[str]:
        """Sentences for people."""
        out = []
        if journal.torn_bytes:
            out.append(
                f"journal {self._folder}: its last record was cut short, {journal.torn_bytes} bytes"
            )
        if journal.damaged or journal.missing:
            out.append(
                f"journal {self._folder}: damaged in {journal.damaged} places, "
                f"{journal.missing} records are lost"
            )
        if self.count:
            out.append(
                f"journal {self._folder}: {self.count} records cannot be used; the last: "
                f"{self._last}"
            )
        return out


class _Head(msgspec.Struct, array_like=True):
    """What a segment of the store says about everything before it."""

    last: dict[str, dict[int, int]] = {}
    tasks: dict[str, Offsets] = {}


class JournaledStore:
    """The learner's store. Give it to `LearnerChannel` as `store`, and its `receipts` too."""

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        max_bytes: int = 8 * 2**30,
        segment_bytes: int = 64 * 2**20,
        max_message_bytes: int = 16 * 2**20,
    ) -> None:
        self.receipts = Receipts()
        self.missing = 0
        """Records that `replay` should have given out, but that are no longer on disk."""
        self._run_id = run_id
        self._unreadable = _Unreadable(folder, run_id)
        self.journal = Journal(
            folder,
            max_bytes=max_bytes,
            segment_bytes=segment_bytes,
            max_record_bytes=max_message_bytes + _ENVELOPE,
            head=self._head,
        )
        try:
            head = msgspec.msgpack.decode(self.journal.head() or b"\x90", type=_Head)
        except msgspec.MsgspecError:
            head = _Head()
        self.receipts.load(head.last)
        for actor, tasks in head.tasks.items():
            self.receipts.tasks_of(actor).add_all(tasks)
        readable = 0
        for _, frame in self.journal.records():
            try:
                envelope = unseal(frame, run_id, len(frame))
                message = decode_actor(envelope.payload)
            except Rejected as rejected:
                self._unreadable.add(rejected)
                continue
            readable += 1
            tasks_done = message.tasks if isinstance(message, TrajectoryMessage) else ()
            self.receipts.add(envelope.actor, envelope.epoch, envelope.sequence, tasks_done)
        self._unreadable.check(self.journal, readable)
        self._problems = self._unreadable.problems(self.journal)

    def problems(self) -> list[str]:
        """What was found wrong when it was opened, for people."""
        return list(self._problems)

    def wants_release(self, consumed: Offsets) -> bool:
        """Whether a checkpoint with `consumed` should be written now, to make room.

        It is more than half full, and an eighth or more of its limit would be free after that.
        """
        journal = self.journal
        return (
            journal.nbytes > journal.max_bytes // 2
            and journal.releasable(consumed.low) >= journal.max_bytes // 8
        )

    def _head(self) -> bytes:
        receipts = self.receipts
        tasks = {actor: done.state() for actor, done in receipts.tasks.items()}
        return msgspec.msgpack.encode(_Head(receipts.table(), tasks))

    def append(self, frame: bytes) -> int:
        """Write a frame. Raises `JournalFull`; then it is not stored."""
        return self.journal.append(frame)

    def commit(self) -> None:
        """What was appended may be acknowledged when this returns."""
        self.journal.commit()

    def replay(self, consumed: Consumed) -> Iterator[Received]:
        """What a checkpoint has not consumed, in order: to be given out again after a restart.

        Records that never came to be trajectories are marked as consumed.
        """
        expected = consumed.low
        for index, frame in self.journal.records(consumed.low):
            for gone in range(expected, index):
                self.missing += gone not in consumed
                consumed.add(gone)
            expected = index + 1
            if index in consumed:
                continue
            try:
                envelope = unseal(frame, self._run_id, len(frame))
                message = decode_actor(envelope.payload)
            except Rejected:
                consumed.add(index)
                continue
            if isinstance(message, TrajectoryMessage):
                yield Received(envelope.actor, envelope.epoch, envelope.sequence, message, index)
            else:
                consumed.add(index)

    def checkpointed(self, consumed: Offsets) -> int:
        """A checkpoint with this `Consumed.state()` is on disk: bytes that came back."""
        return self.journal.release(consumed.low)

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()
