"""Cache events: what a request found and filled, and what comes back after a loss."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from actor.engine.kv_events import BlockRemoved, BlocksFound, BlockStored, KvEvents
from actor.sessions.generation import EventsLost, Scheduled


class Publisher:
    """vLLM's publisher as the subscriber sees it: PUB, and a ROUTER that repeats."""

    def __init__(self, folder: Path, keeps: int = 1000) -> None:
        self.keeps = keeps
        self.endpoints = (f"ipc://{folder}/e", f"ipc://{folder}/r")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._pub, self._replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        self._pub.bind(self.endpoints[0])
        self._replay.bind(self.endpoints[1])
        self._sent: list[bytes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def publish(self, *events: object, lose: bool = False) -> None:
        payload = msgspec.msgpack.encode([0.0, list(events), 0])
        if not lose:
            self._pub.send_multipart([b"", len(self._sent).to_bytes(8, "big"), payload])
        self._sent.append(payload)

    def _answer(self) -> None:
        while not self._stop.is_set():
            if self._replay.poll(20):
                client, _, start = self._replay.recv_multipart()
                oldest = max(0, len(self._sent) - self.keeps)
                for i in range(max(oldest, int.from_bytes(start, "big")), len(self._sent)):
                    number = i.to_bytes(8, "big")
                    self._replay.send_multipart([client, b"", b"", number, self._sent[i]])
                end = (-1).to_bytes(8, "big", signed=True)
                self._replay.send_multipart([client, b"", b"", end, b""])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pub.close(linger=0)
        self._replay.close(linger=0)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path)
    yield publisher
    publisher.close()


@pytest.fixture
def events(publisher: Publisher) -> Iterator[KvEvents]:
    events = KvEvents(*publisher.endpoints, timeout=1.0)
    while not events._next:  # a subscriber that is still joining gets nothing
        publisher.publish(BlockRemoved([]))
        asyncio.run(events._drain())
    for name in ("a", "b", "nobody"):
        events.expect(name)
    yield events
    events.close()


def stored(name: str, parent: bytes | None, *hashes: bytes) -> BlockStored:
    return BlockStored(list(hashes), parent, name)


def found(name: str, tokens: int = 9, blocks: int = 0, preemptions: int = 0) -> BlocksFound:
    return BlocksFound(name, tokens, preemptions, blocks, [])


def ask(events: KvEvents, name: str, blocks: int) -> tuple[Scheduled, ...] | None:
    return asyncio.run(events.blocks_of(name, blocks))


def test_what_a_request_found_and_what_it_filled(publisher: Publisher, events: KvEvents) -> None:
    publisher.publish(found("a", blocks=2), stored("a", None, b"0", b"1"), stored("a", b"1", b"2"))
    publisher.publish(stored("a", b"2", b"3"), stored("other", None, b"x"), BlockRemoved([b"y"]))
    assert ask(events, "a", 4) == (Scheduled(9, (), (b"0", b"1"), (b"2", b"3")),)
    assert events.removed_blocks == 1


def test_lost_batches_are_fetched_again(publisher: Publisher, events: KvEvents) -> None:
    publisher.publish(found("a"), stored("a", None, b"0"), lose=True)
    publisher.publish(stored("a", b"0", b"1"), lose=True)
    publisher.publish(stored("a", b"1", b"2"))
    assert ask(events, "a", 3) == (Scheduled(9, (), (), (b"0", b"1", b"2")),)
    assert events.replays > 0


def test_a_lost_last_batch_is_fetched_again(publisher: Publisher, events: KvEvents) -> None:
    publisher.publish(found("a"), stored("a", None, b"0"))
    publisher.publish(stored("a", b"0", b"1"), lose=True)
    assert ask(events, "a", 2) == (Scheduled(9, (), (), (b"0", b"1")),)


def test_a_request_that_had_to_wait_has_the_blocks_that_it_got(
    publisher: Publisher, events: KvEvents
) -> None:
    publisher.publish(found("a", blocks=2), stored("a", None, b"0", b"1"))  # no room: it waits
    publisher.publish(found("a", blocks=1), stored("a", None, b"0"), stored("a", b"0", b"1"))
    publisher.publish(found("b"), stored("b", None, b"2"))
    assert ask(events, "b", 1) is not None  # so both batches of "a" have been read
    assert ask(events, "a", 2) == (Scheduled(9, (), (b"0",), (b"1",)),)


def test_preemption_begins_a_second_part(publisher: Publisher, events: KvEvents) -> None:
    publisher.publish(found("a"), stored("a", None, b"0", b"1"))
    publisher.publish(found("a", 12, 1, 1), stored("a", None, b"0"), stored("a", b"0", b"1", b"2"))
    assert ask(events, "a", 3) == (
        Scheduled(9, (), (), (b"0", b"1")),
        Scheduled(12, (), (b"0",), (b"1", b"2")),
    )


def test_what_never_comes_is_none_after_the_deadline(
    publisher: Publisher, events: KvEvents
) -> None:
    publisher.publish(found("a"), stored("a", None, b"0"))
    assert ask(events, "a", 2) is None
    assert ask(events, "nobody", 0) is None


def test_forgotten_requests_leave_nothing(publisher: Publisher, events: KvEvents) -> None:
    publisher.publish(found("a"), stored("a", None, b"0"))
    assert ask(events, "a", 1) is not None
    events.forget(["a", "never seen"])
    publisher.publish(stored("a", b"0", b"1"))  # too late: nobody asks
    assert ask(events, "a", 1) is None


@pytest.mark.parametrize("keeps", [0, 2])
def test_a_gap_that_nobody_can_fill_costs_those_in_flight_and_nobody_else(
    publisher: Publisher, events: KvEvents, keeps: int
) -> None:
    publisher.keeps = keeps
    publisher.publish(found("a"), stored("a", None, b"0"))
    for _ in range(5):
        publisher.publish(stored("a", b"0", b"1"), lose=True)
    publisher.publish(found("b"), stored("b", None, b"0"))
    with pytest.raises(EventsLost, match="batches of vLLM's cache events are lost"):
        ask(events, "a", 2)
    with pytest.raises(EventsLost):  # it was submitted before, so something may be missing
        ask(events, "b", 1)
    assert events.lost_batches >= 5 - keeps
    events.forget(["a", "b"])
    lost = events.lost_batches
    events.expect("later")
    publisher.publish(found("later", blocks=1), stored("later", None, b"0"))
    publisher.publish(stored("later", b"0", b"1"))
    assert ask(events, "later", 2) == (Scheduled(9, (), (b"0",), (b"1",)),)
    publisher.publish(stored("later", b"1", b"2"), lose=True)
    publisher.keeps = 10
    assert ask(events, "later", 3) is not None, "what can be filled is"
    assert events.lost_batches == lost


def test_events_are_taken_in_while_nobody_asks(
    publisher: Publisher, events: KvEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.engine.kv_events.DRAIN_SECONDS", 0.0)

    async def scenario() -> None:
        async with asyncio.timeout(20):
            while not events._requests["a"]:
                publisher.publish(found("a"), stored("a", None, b"0"))
                events.expect("another")
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_gap_that_no_later_batch_shows_is_found_at_the_deadline(publisher: Publisher) -> None:
    """All that the socket could have told of it is lost, too."""
    events = KvEvents(*publisher.endpoints, timeout=0.4)
    publisher.keeps = 1
    events.expect("a")
    for _ in range(3):
        publisher.publish(found("a"), lose=True)
    with pytest.raises(EventsLost):
        ask(events, "a", 1)
    assert events.lost_batches == 2
    publisher.keeps = 10
    events.expect("b")
    publisher.publish(found("b"), stored("b", None, b"0"), lose=True)
    assert ask(events, "b", 1) is not None
    events.close()
