"""A buffer is written only while nobody reads it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from protocol.weights.base import NoFreeSlot
from protocol.weights.slots import SlotLedger, SlotSender
from protocol.wire.messages import WeightManifest


def publish(ledger: SlotLedger, version: int, *readers: str) -> int:
    slot = ledger.begin()
    ledger.commit(slot, version, readers)
    return slot


def test_two_slots_alternate_as_readers_apply() -> None:
    ledger = SlotLedger(2)
    assert publish(ledger, 0, "a", "b") == 0
    assert publish(ledger, 1, "a", "b") == 1
    assert ledger.free() is None
    ledger.applied("a", 1)
    assert ledger.free() is None, "b may still have to go back to version 0"
    ledger.applied("b", 1)
    assert publish(ledger, 2, "a", "b") == 0


def test_a_rejected_version_is_released_and_the_served_one_kept() -> None:
    ledger = SlotLedger(2)
    publish(ledger, 0, "a")
    publish(ledger, 1, "a")
    ledger.rejected("a", 1)
    assert publish(ledger, 2, "a") == 1


def test_the_error_says_who_holds_what() -> None:
    ledger = SlotLedger(2)
    publish(ledger, 0, "a", "b")
    publish(ledger, 1, "a")
    with pytest.raises(NoFreeSlot, match="version 0 by a, b, version 1 by a"):
        ledger.begin()
    ledger.left("a")
    ledger.left("b")
    assert ledger.begin() == 0


def test_the_latest_version_waits_for_late_joiners() -> None:
    ledger = SlotLedger(2)
    publish(ledger, 0)
    publish(ledger, 1)
    ledger.joined("late")
    assert publish(ledger, 2) == 0, "version 1 is held by the late one"
    ledger.applied("late", 1)
    assert ledger.free() == 0, "still serving version 1, so only version 2's buffer is open"


def test_who_is_back_holds_what_it_serves() -> None:
    """A reader that was silent was taken for dead; then it says which version it serves."""
    ledger = SlotLedger(2)
    publish(ledger, 0, "a")
    publish(ledger, 1, "a")
    ledger.left("a")
    ledger.joined("a")
    ledger.applied("a", 0)
    assert ledger.free() is None


class Sender(SlotSender):
    """Writes nothing."""

    read_at = 0.0

    def publish(self, version: int, *rest: Any, **more: Any) -> WeightManifest:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _bytes(self, slot: int, offset: int, nbytes: int) -> memoryview:
        raise NotImplementedError

    def fill(self) -> None:
        for version in range(2):
            self._ledger.commit(self._ledger.begin(), version, ["a"])

    def _last_read(self) -> float:
        return self.read_at


def test_waiting_for_a_buffer_ends_when_one_is_free_or_nothing_moves() -> None:
    sender = Sender(2)
    sender.wait_free(0.0)
    sender.fill()
    began = time.monotonic()
    with pytest.raises(NoFreeSlot, match="version 0 by a, version 1 by a"):
        sender.wait_free(0.05)
    threading.Timer(0.1, lambda: sender.applied("a", 1)).start()
    sender.wait_free(10.0)
    assert time.monotonic() - began < 5


def test_waiting_goes_on_while_a_reader_is_seen_to_read() -> None:
    sender = Sender(2)
    sender.fill()
    began = time.monotonic()
    sender.read_at = began + 0.3
    with pytest.raises(NoFreeSlot):
        sender.wait_free(0.05)
    assert time.monotonic() - began >= 0.35


def test_an_interrupted_write_leaves_the_slot_free() -> None:
    ledger = SlotLedger(2)
    publish(ledger, 0, "a")
    assert ledger.begin() == 1
    assert ledger.begin() == 1


def test_versions_only_grow() -> None:
    ledger = SlotLedger(2)
    publish(ledger, 3)
    with pytest.raises(ValueError, match="not newer"):
        publish(ledger, 3)
