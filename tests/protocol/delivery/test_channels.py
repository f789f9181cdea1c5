"""Both channels over real sockets: credits, acknowledgements, late joiners, lost peers."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel, Disconnected
from protocol.delivery.delivery import Outbox
from protocol.delivery.durable import JournaledOutbox
from protocol.delivery.learner_channel import LearnerChannel
from protocol.delivery.received import PeerLost, Received
from protocol.wire.keys import make_keys
from protocol.wire.messages import (
    Acknowledge,
    Bye,
    Canary,
    Finish,
    Hello,
    TensorSpec,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsReady,
)

FAST = ProtocolConfig(
    endpoint="tcp://127.0.0.1:0",
    credits=4,
    heartbeat_seconds=0.05,
    dead_after_seconds=0.6,
    connect_seconds=5.0,
    resend_seconds=0.2,
    linger_seconds=0.2,
)
HELLO = Hello("tiny", 32, 1)


def trajectory(name: str = "t") -> TrajectoryMessage:
    return TrajectoryMessage(
        Trajectory(
            trajectory_id=name,
            pieces=(np.arange(3, dtype=np.int32),),
            response=np.arange(2, dtype=np.int32),
            logprobs=np.zeros(2, np.float32),
            passes=(
                Pass(layout=(0, RESPONSE), states={"a": "b"}, start=0, stop=2, num_cached_tokens=0),
            ),
        )
    )


def ready(version: int) -> WeightsReady:
    return WeightsReady(WeightManifest(version, "shm", 0, 0, (), Canary((), (), 0.1)))


@pytest.fixture
def learner() -> Iterator[LearnerChannel]:
    channel = LearnerChannel(FAST, "run")
    channel.start()
    yield channel
    channel.close()


def actor_of(
    learner: LearnerChannel, name: str = "actor-0", outbox: Outbox | None = None
) -> ActorChannel:
    config = ProtocolConfig(
        endpoint=learner.endpoint,
        heartbeat_seconds=0.05,
        dead_after_seconds=0.6,
        connect_seconds=5.0,
        resend_seconds=0.2,
        linger_seconds=0.2,
    )
    return ActorChannel(config, "run", name, HELLO, outbox=outbox)


def next_of(learner: LearnerChannel, kind: type, timeout: float = 3.0) -> Received:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        event = learner.receive(0.1)
        if event is not None and isinstance(event.message, kind):
            return event
    raise AssertionError(f"no {kind.__name__} within {timeout} s")


async def until(condition, timeout: float = 3.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def test_credits_bound_what_is_under_way_and_come_back_when_accepted(
    learner: LearnerChannel,
) -> None:
    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        assert actor.free_credits == 4
        for i in range(4):
            await actor.acquire()
            actor.send(trajectory(f"t{i}"))
        await actor.drain(3.0)
        assert len(actor.outbox) == 0
        await asyncio.sleep(0.2)
        assert actor.free_credits == 0, "held, but not accepted"
        events = [await asyncio.to_thread(next_of, learner, TrajectoryMessage) for _ in range(4)]
        assert [e.sequence for e in events] == [1, 2, 3, 4]
        learner.accept(events[0])
        learner.accept(events[1])
        await until(lambda: actor.free_credits == 2)
        await actor.acquire()
        assert actor.free_credits == 1
        actor.give_back()
        assert actor.free_credits == 2
        await actor.close()

    asyncio.run(run())
    assert learner.stored == 4
    assert not learner.refusals.counts


def test_announcements_reach_those_who_are_there_and_those_who_join_later(
    learner: LearnerChannel,
) -> None:
    async def run() -> None:
        early = actor_of(learner, "early")
        await early.start()
        learner.announce(ready(0))
        async with asyncio.timeout(3):
            first = await early.receive()
            learner.announce(ready(1))
            second = await early.receive()
        assert isinstance(first, WeightsReady)
        assert first.manifest.version == 0
        assert isinstance(second, WeightsReady)
        assert second.manifest.version == 1
        late = actor_of(learner, "late")
        await late.start()
        async with asyncio.timeout(3):
            only = await late.receive()
        assert isinstance(only, WeightsReady)
        assert only.manifest.version == 1
        late.send(WeightsApplied(1, 0.1, 0.1, 0.0, 0))
        await until(lambda: {p.actor: p.serving for p in learner.peers()}.get("late") == 1)
        learner.announce(Finish(1))
        async with asyncio.timeout(3):
            assert isinstance(await early.receive(), Finish)
            assert isinstance(await late.receive(), Finish)
        await asyncio.sleep(0.3)
        assert not late._messages, "each announcement comes once"
        late.send(Bye("done"))
        await late.close()
        await early.close()

    asyncio.run(run())
    assert next_of(learner, WeightsApplied).actor == "late"
    assert next_of(learner, Bye).actor == "late"


def test_weights_that_are_no_longer_the_newest_are_left_out(learner: LearnerChannel) -> None:
    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        for version in range(3):
            learner.announce(ready(version))
        learner.announce(Finish(2))
        await until(lambda: any(isinstance(one, Finish) for one in actor._messages))
        first, second = await actor.receive(), await actor.receive()
        assert isinstance(first, WeightsReady)
        assert first.manifest.version == 2
        assert isinstance(second, Finish)
        assert not actor._messages
        await actor.close()

    asyncio.run(run())


def test_an_announcement_that_nobody_could_read_is_an_error() -> None:
    learner = LearnerChannel(ProtocolConfig(max_message_bytes=2000), "run")
    spec = TensorSpec("w" * 100, "F32", (1,), 0, 4, 0)
    manifest = WeightManifest(0, "shm", 0, 4, (spec,) * 20, Canary((), (), 0.1))
    with pytest.raises(ValueError, match=r"takes \d+ bytes, more than protocol.max_message_bytes"):
        learner.announce(WeightsReady(manifest))


def test_an_actor_that_is_refused_ends_and_its_next_process_is_welcome(
    learner: LearnerChannel,
) -> None:
    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        learner.refuse("actor-0", "it takes no weights")
        with pytest.raises(Disconnected, match="refused actor 'actor-0': it takes no weights"):
            await actor.receive()
        await actor.close()
        again = actor_of(learner)
        await again.start()
        assert [peer.actor for peer in learner.peers()] == ["actor-0"]
        await again.close()

    asyncio.run(run())
    lost = next_of(learner, PeerLost)
    assert "it takes no weights" in lost.message.reason  # type: ignore[union-attr]


def test_a_trajectory_that_waits_for_the_disk_is_stored_when_there_is_room(
    learner: LearnerChannel,
) -> None:
    class Full(Outbox):
        full = True

        def put(self, epoch: int, sequence: int, frame: bytes) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().put(epoch, sequence, frame)

    async def run() -> None:
        outbox = Full(7)
        actor = actor_of(learner, outbox=outbox)
        await actor.start()
        stored: list[str] = []
        for name in "ab":
            await actor.acquire()
            actor.send(trajectory(name), partial(stored.append, name))
        assert actor.refusals.counts["no_room"] > 0
        assert stored == []
        outbox.full = False
        await until(lambda: stored == ["a", "b"])
        assert actor.paused is None
        assert await actor.drain(3.0) == 0
        await actor.close()

    asyncio.run(run())


def test_a_thread_of_the_keys_that_dies_is_an_error(tmp_path: Path) -> None:
    make_keys(tmp_path)
    channel = LearnerChannel(
        msgspec.structs.replace(FAST, keys=str(tmp_path), endpoint="tcp://127.0.0.1:0"), "run"
    )
    channel.start()
    assert channel._authenticator is not None
    channel._authenticator._thread.stop()
    with pytest.raises(RuntimeError, match="thread that checks CURVE keys has died"):
        channel.receive(3.0)
    channel.close()


def test_a_restarted_learner_gets_what_it_did_not_acknowledge() -> None:
    async def run() -> None:
        first = LearnerChannel(FAST, "run")
        first.start()
        actor = actor_of(first)
        await actor.start()
        await actor.acquire()
        actor.send(trajectory("before"))
        await actor.drain(3.0)
        first.close()
        await actor.acquire()
        actor.send(trajectory("while away"))
        await asyncio.sleep(0.1)
        second = LearnerChannel(
            ProtocolConfig(endpoint=first.endpoint, heartbeat_seconds=0.05, dead_after_seconds=0.6),
            "run",
        )
        second.start()
        event = await asyncio.to_thread(next_of, second, TrajectoryMessage)
        assert isinstance(event.message, TrajectoryMessage)
        assert event.message.trajectory.trajectory_id == "while away"
        assert event.sequence == 2
        assert await actor.drain(3.0) == 0
        assert second.stored == 1
        await actor.close()
        second.close()

    asyncio.run(run())


def test_a_restarted_actor_sends_what_its_outbox_kept_and_replaces_the_old_process(
    learner: LearnerChannel,
) -> None:
    async def run() -> None:
        old = actor_of(learner, outbox=Outbox(10))
        await old.start()
        await old.acquire()
        old.send(trajectory("a"))
        assert await old.drain(3.0) == 0
        await old.acquire()
        await old.acquire()
        outbox = Outbox(11)
        old.send(trajectory("b"))  # sent; the new process does not know whether it arrived
        for epoch, sequence, frame in old.outbox.frames():
            outbox.put(epoch, sequence, frame)
        assert len(outbox) == 1
        await until(lambda: learner.stored == 2)
        new = actor_of(learner, outbox=outbox)
        await new.start()
        assert await new.drain(3.0) == 0
        await new.acquire()
        new.send(trajectory("c"))
        assert await new.drain(3.0) == 0
        old.send(trajectory("zombie"))
        await asyncio.sleep(0.3)
        await old.close()
        await new.close()

    asyncio.run(run())
    names = []
    while (event := learner.receive(0.1)) is not None:
        if isinstance(event.message, TrajectoryMessage):
            names.append(event.message.trajectory.trajectory_id)
    assert names == ["a", "b", "c"]


def test_a_restarted_actor_is_told_which_tasks_are_done(
    learner: LearnerChannel, tmp_path: Path
) -> None:
    async def run() -> None:
        outbox = JournaledOutbox(tmp_path, "run", "actor-0")
        first = actor_of(learner, outbox=outbox)
        await first.start()
        for task in (0, 2):
            await first.acquire()
            first.send(msgspec.structs.replace(trajectory(), tasks=(task,)))
        assert await first.drain(3.0) == 0
        # Written down, and not sent any more.
        first.connected = False
        await first.acquire()
        first.send(msgspec.structs.replace(trajectory(), tasks=(3, 5)))
        first._unsent.clear()
        await first.close()
        outbox.close()
        second = actor_of(learner, outbox=JournaledOutbox(tmp_path, "run", "actor-0"))
        await second.start()
        assert [task for task in range(7) if task not in second.tasks] == [1, 4, 6]
        await second.close()

    asyncio.run(run())


def test_room_is_granted_by_the_version_that_serves() -> None:
    rooms = {-1: 0, 3: 2, 4: 3}
    learner = LearnerChannel(FAST, "run", room=rooms.__getitem__)
    learner.start()

    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        assert actor.free_credits == 0
        actor.send(WeightsApplied(3, 0.0, 0.0, 0.0, 0))
        await until(lambda: actor.free_credits == 2)
        for _ in range(2):
            await actor.acquire()
            actor.send(trajectory())
        assert await actor.drain(3.0) == 0
        assert actor.free_credits == 0
        actor.send(WeightsApplied(4, 0.0, 0.0, 0.0, 0))
        await until(lambda: actor.free_credits == 1)
        await actor.close()

    asyncio.run(run())
    learner.close()


def test_an_older_process_is_refused(learner: LearnerChannel) -> None:
    async def run() -> None:
        new = actor_of(learner, outbox=Outbox(20))
        await new.start()
        old = actor_of(learner, outbox=Outbox(19))
        with pytest.raises(Disconnected, match="newer process"):
            await old.start()
        await new.close()

    asyncio.run(run())
    assert learner.refusals.counts == {"old_epoch": 1}


def test_a_silent_actor_is_reported_and_may_come_back(learner: LearnerChannel) -> None:
    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        time.sleep(1.0)  # the event loop hangs: no heartbeats
        lost = await asyncio.to_thread(next_of, learner, PeerLost)
        assert lost.actor == "actor-0"
        assert "silent" in lost.message.reason  # type: ignore[union-attr]
        await until(lambda: len(learner.peers()) == 1)
        await actor.acquire()
        actor.send(trajectory())
        assert await actor.drain(3.0) == 0
        await actor.close()

    asyncio.run(run())


def test_an_actor_says_what_has_changed_at_once_and_that_nothing_has_now_and_then(
    learner: LearnerChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = []
    again = learner._announce_again

    def counted(peer: Any, seen: int) -> None:
        beats.append(time.monotonic())
        again(peer, seen)

    monkeypatch.setattr(learner, "_announce_again", counted)

    async def run() -> None:
        config = msgspec.structs.replace(
            FAST, endpoint=learner.endpoint, heartbeat_seconds=0.02, dead_after_seconds=4.0
        )
        actor = ActorChannel(config, "run", "actor-0", HELLO)
        await actor.start()
        await asyncio.sleep(0.3)
        beats.clear()
        await asyncio.sleep(1.6)
        assert 2 <= len(beats) <= 4, "every half second; not eighty"
        beats.clear()
        actor.serving = 7
        await until(lambda: any(one.serving == 7 for one in learner.peers()), 0.4)
        await actor.close()

    asyncio.run(run())


def test_a_slow_learner_is_not_sent_everything_again_and_again(
    learner: LearnerChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = learner._receipts.last
    monkeypatch.setattr(learner._receipts, "last", lambda actor, epoch: 0)

    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        try:
            await actor.acquire()
            actor.send(trajectory())
            await asyncio.sleep(2.4)  # sent again after 0.2, 0.6 and 1.4 s
            assert 2 <= learner.refusals.counts["duplicate"] <= 3
            monkeypatch.setattr(learner._receipts, "last", last)
            await until(lambda: len(actor.outbox) == 0)
            assert actor._patience == 0.2
        finally:
            await actor.close()

    asyncio.run(run())


def test_many_clients_of_a_slow_learner_get_every_acknowledgement_and_credit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Storing is slow, a third of the acknowledgements and a tenth of the trajectories are lost,
    and everything is sent again while it is under way: all come once, in order, and no credit
    stays away."""
    clients, each = 16, 10
    config = msgspec.structs.replace(FAST, credits=8, dead_after_seconds=4.0, connect_seconds=60.0)
    channel = LearnerChannel(config, "run", room=lambda serving: 24)
    draw = random.Random(1)
    send_peer, trajectory_of, commit = channel._send_peer, channel._trajectory, channel._commit

    def send_some(peer: Any, message: Any, number: int = 0) -> None:
        if not isinstance(message, Acknowledge) or draw.random() > 1 / 3:
            send_peer(peer, message, number)

    def read_some(*arguments: Any) -> None:
        if draw.random() > 0.1:
            trajectory_of(*arguments)

    def slowly() -> None:
        time.sleep(0.05)
        commit()

    monkeypatch.setattr(channel, "_send_peer", send_some)
    monkeypatch.setattr(channel, "_trajectory", read_some)
    monkeypatch.setattr(channel, "_commit", slowly)
    channel.start()
    got: dict[str, list[int]] = {}
    stop = threading.Event()

    def consume() -> None:
        while not stop.is_set():
            event = channel.receive(0.05)
            if event is not None and isinstance(event.message, TrajectoryMessage):
                got.setdefault(event.actor, []).append(event.sequence)
                channel.accept(event)

    async def one(name: str) -> None:
        where = msgspec.structs.replace(config, endpoint=channel.endpoint)
        actor = ActorChannel(where, "run", name, HELLO)
        await actor.start()
        for number in range(each):
            await actor.acquire()
            actor.send(trajectory(f"{name}-{number}"))
        assert await actor.drain(40.0) == 0, f"{name} was not acknowledged"
        async with asyncio.timeout(20):
            await actor.acquire()
        actor.give_back()
        await actor.close()

    async def run() -> None:
        await asyncio.gather(*(one(f"actor-{number}") for number in range(clients)))

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        asyncio.run(run())
    finally:
        stop.set()
        consumer.join(5)
        channel.close()
    assert got == {f"actor-{n}": list(range(1, each + 1)) for n in range(clients)}
    assert channel.refusals.counts["duplicate"] > 0
    assert channel._grants._stored == 0
    assert channel._grants._flying == sum(channel._grants._granted.values())


def test_no_learner_is_an_error_within_the_deadline() -> None:
    async def run() -> None:
        config = ProtocolConfig(
            endpoint="tcp://127.0.0.1:9",
            heartbeat_seconds=0.05,
            dead_after_seconds=0.2,
            connect_seconds=0.4,
            linger_seconds=0.0,
        )
        actor = ActorChannel(config, "run", "actor-0", HELLO)
        with pytest.raises(Disconnected, match=r"tcp://127.0.0.1:9 for"):
            await actor.start()

    asyncio.run(run())


def test_a_learner_that_dies_is_an_error_within_the_deadline() -> None:
    async def run() -> None:
        learner = LearnerChannel(FAST, "run")
        learner.start()
        config = ProtocolConfig(
            endpoint=learner.endpoint,
            heartbeat_seconds=0.05,
            dead_after_seconds=0.2,
            connect_seconds=0.5,
            linger_seconds=0.0,
        )
        actor = ActorChannel(config, "run", "actor-0", HELLO)
        await actor.start()
        learner.close()
        with pytest.raises(Disconnected):
            await actor.receive()
        assert not actor.connected
        await actor.close()

    asyncio.run(run())


def test_a_busy_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"cannot listen on .*: Address already in use"):
            LearnerChannel(ProtocolConfig(endpoint=endpoint), "run").start()


def test_strangers_are_counted_and_change_nothing(learner: LearnerChannel) -> None:
    host, port = learner.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 2000)
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(learner.endpoint)
    stranger.send(b"")
    stranger.send(b"x" * 100)
    stranger.send_multipart([b"a", b"b"])

    async def run() -> None:
        actor = actor_of(learner)
        await actor.start()
        await actor.acquire()
        actor.send(trajectory())
        assert await actor.drain(3.0) == 0
        await until(lambda: sum(learner.refusals.counts.values()) == 3)
        await actor.close()

    asyncio.run(run())
    stranger.close(0)
    context.term()
    assert learner.refusals.counts == {"truncated": 1, "magic": 1, "frames": 1}


def test_keys_that_cannot_be_used_are_said_and_closing_hides_nothing(tmp_path: Path) -> None:
    config = msgspec.structs.replace(FAST, keys=str(tmp_path / "none"))
    learner = LearnerChannel(config, "run")
    with pytest.raises(ValueError, match="none"):
        learner.start()
    learner.close()

    async def scenario() -> None:
        actor = ActorChannel(config, "run", "actor", HELLO)
        try:
            with pytest.raises(ValueError, match="none"):
                await actor.start()
        finally:
            await actor.close()
        await ActorChannel(config, "run", "never-started", HELLO).close()

    asyncio.run(scenario())
