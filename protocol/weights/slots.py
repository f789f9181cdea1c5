"""Which of a sender's buffers may be written, and who still reads the others.

A reader of memory needs the version it serves (it may have to go back to it) and the one it is
fetching: applying a version releases all older ones. One that makes a copy needs what it is
fetching, and that alone: while it is at an older version, a newer one that it was told of may be
replaced by one that is newer still, which it takes in its place. So one slow reader holds one
buffer, and nobody else waits for it. Rejecting a version releases that one. The latest version is
kept for late joiners as long as another buffer is free.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterable

from protocol.weights.base import NoFreeSlot, WeightSender
from protocol.wire.messages import TensorSpec


class SlotLedger:
    """Pure bookkeeping of `slots` buffers."""

    def __init__(self, slots: int, copied: bool = False) -> None:
        """`copied`: readers have a copy of what they serve."""
        if slots < 2:
            raise ValueError(f"a weight sender needs at least 2 buffers, not {slots}")
        self._copied = copied
        self._version: list[int | None] = [None] * slots
        self._readers: list[set[str]] = [set() for _ in range(slots)]
        self.latest: int | None = None

    def free(self) -> int | None:
        """The buffer to write next, or None while all are read."""
        unread = [slot for slot in range(len(self._version)) if not self._read_in(slot)]
        # Empty ones first, then the oldest; the latest version only when nothing else is left.
        order = sorted(
            unread,
            key=lambda slot: (
                -1 if (version := self._version[slot]) is None else version,
                slot,
            ),
        )
        return order[0] if order else None

    def _read_in(self, slot: int) -> set[str]:
        """Who reads a buffer now, or has nothing else to read."""
        readers, version = self._readers[slot], self._version[slot]
        if not self._copied or version is None:
            return readers
        older = [
            self._readers[other]
            for other, stored in enumerate(self._version)
            if stored is not None and stored < version
        ]
        return readers.difference(*older)

    def holds(self, version: int) -> bool:
        """Whether a version can be read still."""
        return version in self._version

    def begin(self) -> int:
        """Take a buffer for writing: what was in it is gone. Raises `NoFreeSlot`."""
        slot = self.free()
        if slot is None:
            raise self.full()
        self._version[slot] = None
        return slot

    def full(self) -> NoFreeSlot:
        """The error that says who reads what."""
        read = ", ".join(
            f"version {self._version[slot]} by {', '.join(sorted(readers))}"
            for slot, readers in enumerate(self._readers)
            if readers
        )
        return NoFreeSlot(f"every weight buffer is still being read: {read}")

    def commit(self, slot: int, version: int, readers: Iterable[str]) -> None:
        """A buffer now contains `version`, which `readers` are told of."""
        if self.latest is not None and version <= self.latest:
            raise ValueError(f"version {version} is not newer than {self.latest}")
        self._version[slot] = version
        self._readers[slot] = set(readers)
        self.latest = version

    def joined(self, reader: str) -> None:
        """A reader is told of the latest version."""
        for slot, version in enumerate(self._version):
            if version is not None and version == self.latest:
                self._readers[slot].add(reader)

    def applied(self, reader: str, version: int) -> None:
        """A reader serves `version`."""
        for slot, stored in enumerate(self._version):
            if stored is None:
                continue
            if stored < version or (stored == version and self._copied):
                self._readers[slot].discard(reader)
            elif stored == version:  # it may be back after it was given up for dead
                self._readers[slot].add(reader)

    def rejected(self, reader: str, version: int) -> None:
        """A reader does without `version`."""
        for slot, stored in enumerate(self._version):
            if stored == version:
                self._readers[slot].discard(reader)

    def left(self, reader: str) -> None:
        """A reader reads nothing more."""
        for readers in self._readers:
            readers.discard(reader)


class SlotSender(WeightSender):
    """A sender that keeps versions in a fixed number of buffers. Subclasses write them."""

    def __init__(self, slots: int, copied: bool = False) -> None:
        """`copied`: see `SlotLedger`."""
        self._ledger = SlotLedger(slots, copied)
        self._changed = threading.Condition()
        """Guards the ledger."""
        self._newest: tuple[int, dict[str, TensorSpec]] = (-1, {})
        """The slot of the newest version, and where its tensors lie in it."""

    def newest(self, name: str) -> memoryview | None:
        """The bytes of a tensor in the newest version; None once its buffer is written again."""
        slot, specs = self._newest
        spec = specs.get(name)
        return None if spec is None else self._bytes(slot, spec.offset, spec.nbytes)

    @abstractmethod
    def _bytes(self, slot: int, offset: int, nbytes: int) -> memoryview:
        """Part of a buffer."""

    def _begin(self) -> int:
        """A buffer to write. Raises `NoFreeSlot`. `_changed` is held."""
        slot = self._ledger.begin()
        if slot == self._newest[0]:
            self._newest = (-1, {})
        return slot

    def _commit(
        self, slot: int, version: int, readers: Iterable[str], specs: Iterable[TensorSpec]
    ) -> None:
        """A buffer contains `version`. `_changed` is held."""
        self._ledger.commit(slot, version, readers)
        self._newest = (slot, {spec.name: spec for spec in specs})

    def wait_free(self, timeout: float) -> None:
        """Wait until a version can be published.

        Raises `NoFreeSlot` once every buffer is read and nothing moved for `timeout` seconds.
        """
        began = time.monotonic()
        with self._changed:
            while self._ledger.free() is None:
                left = max(began, self._last_read()) + timeout - time.monotonic()
                if left <= 0:
                    raise self._ledger.full()
                self._changed.wait(left)

    def _last_read(self) -> float:
        """When a reader was last seen reading (`time.monotonic`), where that can be seen."""
        return 0.0

    def holds(self, version: int) -> bool:
        """Whether a version can be read still."""
        with self._changed:
            return self._ledger.holds(version)

    def joined(self, reader: str) -> None:
        """A reader came late and is told of the latest version."""
        with self._changed:
            self._ledger.joined(reader)

    def applied(self, reader: str, version: int) -> None:
        """A reader serves `version`."""
        with self._changed:
            self._ledger.applied(reader, version)
            self._changed.notify_all()

    def rejected(self, reader: str, version: int) -> None:
        """A reader will not use `version`."""
        with self._changed:
            self._ledger.rejected(reader, version)
            self._changed.notify_all()

    def left(self, reader: str) -> None:
        """A reader is gone."""
        with self._changed:
            self._ledger.left(reader)
            self._changed.notify_all()
