"""A buffer is written only while nobody reads it."""

from __future__ import annotations

import pytest

from protocol.weights.base import NoFreeSlot
from protocol.weights.slots import SlotLedger


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


def test_a_rejected_version_is_let_go_and_the_served_one_kept() -> None:
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
