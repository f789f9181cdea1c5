"""Which of a sender's buffers may be written, and who still reads the others.

A reader holds the version it serves (it may have to go back to it) and the one it is fetching.
Applying a version lets go of all older ones; rejecting a version lets go of that one. The
latest version is kept for late joiners as long as another buffer is free.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.weights.base import NoFreeSlot


class SlotLedger:
    """Pure bookkeeping of `slots` buffers."""

    def __init__(self, slots: int) -> None:
        if slots < 2:
            raise ValueError(f"a weight sender needs at least 2 buffers, not {slots}")
        self._version: list[int | None] = [None] * slots
        self._readers: list[set[str]] = [set() for _ in range(slots)]
        self.latest: int | None = None

    def free(self) -> int | None:
        """The buffer to write next, or None while all are read."""
        open_slots = [slot for slot, readers in enumerate(self._readers) if not readers]
        # Empty ones first, then the oldest; the latest version only when nothing else is left.
        order = sorted(
            open_slots,
            key=lambda slot: (
                -1 if (version := self._version[slot]) is None else version,
                slot,
            ),
        )
        return order[0] if order else None

    def begin(self) -> int:
        """Take a buffer for writing: what it held is gone. Raises `NoFreeSlot`."""
        slot = self.free()
        if slot is None:
            held = ", ".join(
                f"version {self._version[slot]} by {', '.join(sorted(readers))}"
                for slot, readers in enumerate(self._readers)
            )
            raise NoFreeSlot(f"every weight buffer is still held: {held}")
        self._version[slot] = None
        return slot

    def commit(self, slot: int, version: int, readers: Iterable[str]) -> None:
        """A buffer now holds `version`, which `readers` are told of."""
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
        for slot, held in enumerate(self._version):
            if held is not None and held < version:
                self._readers[slot].discard(reader)

    def rejected(self, reader: str, version: int) -> None:
        """A reader goes on without `version`."""
        for slot, held in enumerate(self._version):
            if held == version:
                self._readers[slot].discard(reader)

    def left(self, reader: str) -> None:
        """A reader reads nothing more."""
        for readers in self._readers:
            readers.discard(reader)
