"""Journaled outbox and store: what a killed process finds when it is started again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynatok_online.trajectory import Trajectory
from protocol.delivery.delivery import Arrival, Consumed
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.delivery.journal import JournalFull
from protocol.wire.codec import decode_actor, encode
from protocol.wire.envelope import Sealer, unseal
from protocol.wire.messages import Backlog, Offsets, Skipped, TrajectoryMessage


def frame(epoch: int, sequence: int, actor: str = "a", run: str = "run") -> bytes:
    empty = Trajectory(
        trajectory_id=f"{epoch}/{sequence}",
        pieces=(),
        response=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        passes=(),
    )
    return Sealer(run, actor).seal(encode(TrajectoryMessage(empty)), epoch, sequence)


def put(outbox: JournaledOutbox, count: int = 1) -> None:
    for _ in range(count):
        number = outbox.number()
        outbox.put(outbox.epoch, number, frame(outbox.epoch, number))


def test_an_outbox_is_found_again_under_a_new_epoch(tmp_path: Path) -> None:
    first = JournaledOutbox(tmp_path, "run", "a")
    put(first, 3)
    first.acknowledge(first.epoch, 1)
    first.close()
    second = JournaledOutbox(tmp_path, "run", "a")
    assert second.epoch > first.epoch
    # Space comes back by segments, so what was acknowledged may be there; the learner knows it.
    assert [(e, s) for e, s, _ in second.frames()] == [(first.epoch, n) for n in (1, 2, 3)]
    put(second)
    second.acknowledge(first.epoch, 3)
    assert second.streams() == (Backlog(second.epoch, 1),)
    second.close()


def test_acknowledged_segments_are_deleted(tmp_path: Path) -> None:
    outbox = JournaledOutbox(tmp_path, "run", "a", segment_bytes=1000)
    put(outbox, 50)
    before = outbox.journal.nbytes
    outbox.acknowledge(outbox.epoch, 49)
    assert outbox.journal.nbytes < before / 10
    outbox.close()
    again = JournaledOutbox(tmp_path, "run", "a")
    assert (outbox.epoch, 50) in [(e, s) for e, s, _ in again.frames()]
    again.close()


def test_a_damaged_record_is_announced_as_skipped(tmp_path: Path) -> None:
    outbox = JournaledOutbox(tmp_path, "run", "a")
    put(outbox, 3)
    outbox.close()
    path = next(tmp_path.glob("*.journal"))
    data = bytearray(path.read_bytes())
    data[data.index(f"{outbox.epoch}/2".encode())] ^= 1
    path.write_bytes(data)
    again = JournaledOutbox(tmp_path, "run", "a")
    frames = {s: f for e, s, f in again.frames() if e == outbox.epoch}
    assert sorted(frames) == [1, 2, 3]
    message = decode_actor(unseal(frames[2], "run", 10_000).payload)
    assert isinstance(message, Skipped)
    again.close()


def test_records_of_another_run_or_actor_are_not_ours(tmp_path: Path) -> None:
    outbox = JournaledOutbox(tmp_path, "run", "a")
    assert outbox.problems() == []
    put(outbox)
    outbox.journal.append(frame(1, 1, actor="b"))
    outbox.journal.append(frame(1, 2, run="other"))
    outbox.journal.append(b"what is this")
    outbox.close()
    again = JournaledOutbox(tmp_path, "run", "a")
    assert len(again) == 1
    assert again.problems() == [
        f"journal {tmp_path}: 3 records cannot be used; the last: 12 bytes, less than a header of "
        "48"
    ]
    again.close()


def test_a_journal_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    """A run folder that was renamed: the run id is its name."""
    outbox = JournaledOutbox(tmp_path / "outbox", "old-name", "a")
    number = outbox.number()
    outbox.put(outbox.epoch, number, frame(outbox.epoch, number, run="old-name"))
    outbox.close()
    store = JournaledStore(tmp_path / "store", "old-name")
    store.receipts.hello("a", 1, ())
    store.append(frame(1, 1, run="old-name"))
    store.close()
    for open_it in (
        lambda: JournaledOutbox(tmp_path / "outbox", "new-name", "a"),
        lambda: JournaledStore(tmp_path / "store", "new-name"),
    ):
        for _ in range(2):  # it is closed again: the second try says the same
            with pytest.raises(ValueError, match=r"belongs to run 'old-name'.*Give it its old"):
                open_it()
    JournaledOutbox(tmp_path / "outbox", "old-name", "a").close()
    JournaledStore(tmp_path / "store", "old-name").close()


def test_what_the_learner_could_not_read_is_announced_as_skipped(tmp_path: Path) -> None:
    """It would refuse the actor at every try, and all behind it would wait for ever."""
    outbox = JournaledOutbox(tmp_path, "run", "a")
    sealer = Sealer("run", "a")
    for content in (b"\x81\xa4type\xa6future", encode(Skipped("x" * 500)), encode(Skipped("ok"))):
        number = outbox.number()
        outbox.put(outbox.epoch, number, sealer.seal(content, outbox.epoch, number))
    outbox.close()
    again = JournaledOutbox(tmp_path, "run", "a", max_message_bytes=300)
    reasons = []
    for _, _, kept in again.frames(outbox.epoch):
        message = decode_actor(unseal(kept, "run", 300).payload)
        assert isinstance(message, Skipped)
        reasons.append(message.reason)
    assert len(reasons) == 3
    assert "more than the limit of 300" in reasons[1]
    assert reasons[2] == "ok"
    assert "2 records cannot be used" in again.problems()[0]
    again.close()


def test_the_limit_of_a_record_follows_the_longest_message(tmp_path: Path) -> None:
    long = encode(Skipped("x" * 2**20))
    outbox = JournaledOutbox(tmp_path / "a", "run", "a", max_message_bytes=2 * 2**20)
    outbox.put(1, 1, Sealer("run", "a").seal(long, 1, 1))
    outbox.close()
    small = JournaledOutbox(tmp_path / "b", "run", "a", max_message_bytes=1000)
    with pytest.raises(ValueError, match="longer than the journal's limit of 5096"):
        small.put(1, 1, bytes(5097))
    small.close()
    store = JournaledStore(tmp_path / "c", "run", max_message_bytes=2 * 2**20)
    store.receipts.hello("a", 1, ())
    store.append(Sealer("run", "a").seal(long, 1, 1))
    store.close()
    # A limit that was lowered since does not hide what was stored before.
    again = JournaledStore(tmp_path / "c", "run", max_message_bytes=1000)
    assert again.receipts.last("a", 1) == 1
    assert again.problems() == []
    again.close()


def test_a_checkpoint_is_wanted_when_it_makes_room(tmp_path: Path) -> None:
    store = JournaledStore(tmp_path, "run", max_bytes=20_000)
    store.receipts.hello("a", 1, ())
    consumed = Consumed()
    wanted = []
    for sequence in range(1, 200):
        consumed.add(receive(store, 1, sequence))
        wanted.append(store.wants_release(consumed.state()))
        assert not store.wants_release(Offsets()), "nothing was trained on: it would not help"
        if wanted[-1]:
            assert store.journal.nbytes > 10_000
            assert store.checkpointed(consumed.state()) >= 2_500
            assert not store.wants_release(consumed.state())
    assert 2 < sum(wanted) < 20, "it is never full, and not saved for each record"
    store.close()


def test_a_full_outbox_keeps_nothing_half(tmp_path: Path) -> None:
    outbox = JournaledOutbox(tmp_path, "run", "a", max_bytes=1000, segment_bytes=400)
    with pytest.raises(JournalFull):
        put(outbox, 100)
    kept = len(outbox)
    assert 0 < kept == len(list(outbox.journal.records()))
    outbox.acknowledge(outbox.epoch, kept)
    put(outbox)
    outbox.close()


def receive(store: JournaledStore, epoch: int, sequence: int, actor: str = "a") -> int:
    assert store.receipts.offer(actor, epoch, sequence) is Arrival.NEW
    index = store.append(frame(epoch, sequence, actor))
    store.receipts.add(actor, epoch, sequence)
    return index


def test_an_inbox_gives_out_again_what_no_checkpoint_consumed(tmp_path: Path) -> None:
    first = JournaledStore(tmp_path, "run")
    first.receipts.hello("a", 1, ())
    indices = [receive(first, 1, s) for s in range(1, 6)]
    first.commit()
    first.close()
    second = JournaledStore(tmp_path, "run")
    assert second.receipts.offer("a", 1, 5) is Arrival.DUPLICATE
    consumed = Consumed()
    for index in (indices[0], indices[1], indices[3]):
        consumed.add(index)
    saved = consumed.state()
    assert saved == Offsets(2, (3,))
    again = list(second.replay(Consumed(saved.low, saved.beyond)))
    assert [(e.actor, e.epoch, e.sequence, e.record) for e in again] == [
        ("a", 1, 3, 2),
        ("a", 1, 5, 4),
    ]
    assert second.missing == 0
    second.close()


def test_deleted_records_are_still_known(tmp_path: Path) -> None:
    first = JournaledStore(tmp_path, "run", segment_bytes=800)
    first.receipts.hello("a", 1, ())
    first.receipts.hello("b", 1, ())
    consumed = Consumed()
    consumed.add(receive(first, 1, 1, actor="b"))
    for sequence in range(1, 31):
        consumed.add(receive(first, 1, sequence))
    assert first.checkpointed(consumed.state()) > 0
    first.close()
    second = JournaledStore(tmp_path, "run")
    assert second.receipts.offer("a", 1, 30) is Arrival.DUPLICATE
    assert second.receipts.offer("b", 1, 1) is Arrival.DUPLICATE, "its record was deleted"
    assert list(second.replay(consumed)) == []
    assert second.missing == 0
    second.close()


def test_a_checkpoint_older_than_the_journal_is_noticed(tmp_path: Path) -> None:
    store = JournaledStore(tmp_path, "run", segment_bytes=800)
    store.receipts.hello("a", 1, ())
    consumed = Consumed()
    for sequence in range(1, 31):
        consumed.add(receive(store, 1, sequence))
    store.checkpointed(consumed.state())
    left = len(list(store.replay(Consumed())))
    assert store.missing == 30 - left > 0
    store.close()


def test_consumed_is_small_and_exact() -> None:
    consumed = Consumed()
    for index in (1, 0, 5, 2, 1):
        consumed.add(index)
    assert consumed.state() == Offsets(3, (5,))
    assert [i for i in range(7) if i in consumed] == [0, 1, 2, 5]


def test_offsets_are_put_together() -> None:
    consumed = Consumed(2, (4,))
    consumed.add_all(Offsets(0, (1, 2, 3, 7)))
    assert consumed.state() == Offsets(5, (7,))
    consumed.add_all(Offsets(7, ()))
    assert consumed.state() == Offsets(8, ())
    consumed.add_all(Offsets(3, ()))
    assert consumed.state() == Offsets(8, ())


def test_tasks_are_known_after_their_records_are_gone(tmp_path: Path) -> None:
    first = JournaledStore(tmp_path, "run", segment_bytes=800)
    first.receipts.hello("a", 1, ())
    consumed = Consumed()
    for task in range(30):
        empty = decode_actor(unseal(frame(1, task + 1), "run", 10_000).payload)
        assert isinstance(empty, TrajectoryMessage)
        done = encode(TrajectoryMessage(empty.trajectory, (task,)))
        consumed.add(first.append(Sealer("run", "a").seal(done, 1, task + 1)))
        first.receipts.add("a", 1, task + 1, (task,))
    assert first.checkpointed(consumed.state()) > 0
    first.close()
    second = JournaledStore(tmp_path, "run")
    assert second.journal.first_index > 0
    assert second.receipts.tasks_of("a").state() == Offsets(30, ())
    second.close()
