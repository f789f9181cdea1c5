"""The learner's inbox behind a real channel: what it hands on, refuses, counts and answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from dynatok_online.rows.plan import needed_tokens, plan_rows
from dynatok_online.trajectory import Trajectory
from learner.online.inbox import Inbox
from learner.online.staleness import ARRIVED_STALE
from learner.online.stream import LearnerFailed, Stream
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel, Disconnected
from protocol.delivery.learner_channel import LearnerChannel
from protocol.delivery.received import Received
from protocol.weights.slots import SlotLedger
from protocol.wire.messages import (
    Bye,
    Canary,
    Hello,
    Skipped,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsReady,
    WeightsRejected,
)

FAST: dict[str, Any] = {
    "credits": 4,
    "heartbeat_seconds": 0.05,
    "dead_after_seconds": 0.6,
    "connect_seconds": 5.0,
    "linger_seconds": 0.2,
}


def manifest(version: int) -> WeightManifest:
    return WeightManifest(version, "shm", 0, 0, (), Canary((), (), 0.1))


class Readers(SlotLedger):
    """A weight sender's bookkeeping, and what killed its thread."""

    failure: BaseException | None = None


class Side:
    """A learner without a trainer: channel, inbox and stream."""

    def __init__(self, mismatches: int = 0, lag: int = 2, room: int = 0) -> None:
        self.channel = LearnerChannel(ProtocolConfig(**FAST), "run")
        self.stream = Stream(max_policy_lag=lag)
        self.readers = Readers(2)
        self.done: list[Received] = []
        self.dropped: list[tuple[str, str]] = []
        self.newest: WeightManifest | None = None
        self.inbox = Inbox(
            self.channel,
            self.stream,
            self.readers,
            mismatches,
            done=self.done.append,
            dropped=lambda one, cause: self.dropped.append((one.trajectory_id, cause)),
            newest=lambda: self.newest,
            max_row_tokens=room,
            again_seconds=0.1,
        )

    def announce(self, version: int) -> None:
        actors = [peer.actor for peer in self.channel.peers()]
        self.readers.commit(self.readers.begin(), version, actors)
        self.newest = manifest(version)
        self.channel.announce(WeightsReady(self.newest))


@pytest.fixture
def side() -> Iterator[Side]:
    with opened() as one:
        yield one


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[Side]:
    one = Side(**options)
    one.channel.start()
    one.inbox.start()
    yield one
    one.inbox.close()
    one.channel.close()


@contextlib.asynccontextmanager
async def connected(side: Side, name: str = "actor-0") -> Any:
    config = ProtocolConfig(**FAST | {"endpoint": side.channel.endpoint})
    actor = ActorChannel(config, "run", name, Hello("tiny", 32, 1))
    await actor.start()
    yield actor
    await actor.close()


async def send(actor: ActorChannel, *trajectories: Trajectory) -> None:
    for one in trajectories:
        await actor.acquire()
        actor.send(TrajectoryMessage(one))
    assert await actor.drain(3.0) == 0


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def next_weights(actor: ActorChannel) -> int:
    async with asyncio.timeout(5):
        message = await actor.receive()
    assert isinstance(message, WeightsReady)
    return message.manifest.version


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def contradicting(one: Trajectory) -> Trajectory:
    """Its second pass says that it reused what no block had."""
    first, second = one.passes
    return msgspec.structs.replace(
        one, passes=(first, msgspec.structs.replace(second, num_cached_tokens=4))
    )


def test_what_is_too_long_for_a_row_is_dropped_counted_and_said(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of failing the step that it comes to, and every step after a restart."""
    short, long = make("short"), make("long")
    needed = needed_tokens(short)
    pieces = (np.tile(long.pieces[0], 30), *long.pieces[1:])
    long = msgspec.structs.replace(long, pieces=pieces)
    with opened(room=needed) as side:

        async def scenario() -> None:
            async with connected(side) as actor:
                await send(actor, long, short, msgspec.structs.replace(long, trajectory_id="l2"))
                await until(lambda: side.stream.counts()["waiting"] == 1)
                await until(lambda: actor.free_credits == 3)

        run(scenario())
    assert side.dropped == [("long", "too_long"), ("l2", "too_long")]
    assert side.inbox.rejected["too_long"] == 2
    said = capsys.readouterr().err
    assert said.count("max_row_tokens") == 1
    assert f"needs a row of {needed_tokens(long)} tokens" in said
    with pytest.raises(ValueError, match=f"needs {needed_tokens(long)} tokens"):
        plan_rows([long], max_tokens=needed_tokens(long) - 1)
    plan_rows([long], max_tokens=needed_tokens(long))


def test_a_credit_comes_back_when_the_trainer_takes_the_trajectory(side: Side, make: Any) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            await send(actor, *(make(f"t{i}") for i in range(4)))
            await until(lambda: side.stream.counts()["waiting"] == 4)
            assert actor.free_credits == 0
            batch = await asyncio.to_thread(side.stream.take, 3, 5.0)
            assert batch is not None
            assert [one.trajectory_id for one in batch] == ["t0", "t1", "t2"]
            await until(lambda: actor.free_credits == 3)

    run(scenario())
    assert [one.sequence for one in side.done] == [1, 2, 3]
    assert side.dropped == []


def test_what_cannot_be_trained_on_is_counted_by_cause_and_gives_its_credit_back(
    make: Any,
) -> None:
    with opened(mismatches=1) as side:
        side.stream.advance(9)

        async def scenario() -> None:
            async with connected(side) as actor:
                nothing = make("empty")
                nothing = msgspec.structs.replace(
                    nothing, response=nothing.response[:0], logprobs=nothing.logprobs[:0], passes=()
                )
                await send(
                    actor,
                    nothing,
                    make("nan", version=9, logprobs=lambda n: np.full(n, np.nan, np.float32)),
                    make("old", version=3),
                )
                await send(actor, contradicting(make("lies", version=9)), make("good", version=9))
                await until(lambda: side.stream.counts()["waiting"] == 1)
                await until(lambda: actor.free_credits == 3)

        run(scenario())
        assert side.dropped == [
            ("empty", "empty"),
            ("nan", "no_logprobs"),
            ("old", ARRIVED_STALE),
            ("lies", "audit"),
        ]
        assert side.inbox.rejected == {"empty": 1, "no_logprobs": 1, "audit": 1}
        assert side.inbox.audit_mismatches == 1
        assert side.stream.failure is None, "one is allowed"
        counts = side.inbox.counts()
        other = Side().inbox
        other.restore(counts)
        assert other.counts() == counts


def test_more_contradictions_than_allowed_end_the_run(side: Side, make: Any) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            await send(actor, contradicting(make("lies")))
            await until(lambda: side.stream.failure is not None)

    run(scenario())
    with pytest.raises(LearnerFailed, match=r"1 trajectories contradict .* is lies: "):
        side.stream.take(1, 1.0)


def test_what_an_actors_disk_lost_and_what_comes_after_the_end_is_counted(
    side: Side, make: Any
) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            number = actor.outbox.number()
            from protocol.wire.codec import encode

            frame = actor._sealer.seal(encode(Skipped("damaged")), actor.outbox.epoch, number)
            actor.outbox.put(actor.outbox.epoch, number, frame)
            actor._post(frame)
            await until(lambda: side.inbox.rejected["lost_by_actor"] == 1)
            side.inbox.finish()
            await send(actor, make("late"))
            await until(lambda: side.dropped == [("late", "after_finish")])
            await until(lambda: actor.free_credits == 4)

    run(scenario())


def test_readers_are_told_who_serves_what_and_who_is_gone(side: Side) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            side.announce(0)
            assert await next_weights(actor) == 0
            actor.send(WeightsApplied(0, 0.0, 0.0, 0.0, 0))
            side.announce(1)
            assert await next_weights(actor) == 1
            assert side.readers.free() is None
            actor.send(WeightsApplied(1, 0.0, 0.0, 0.0, 0))
            await until(lambda: side.readers.free() == 0)
            assert side.inbox.weight_syncs == 1, "the first weights are none"
            actor.send(Bye("finished"))
            await until(lambda: "good-bye: finished" in side.stream.note)
            assert not side.inbox.gone.is_set(), "nobody told it to leave"

    run(scenario())


def test_the_last_good_bye_ends_a_finished_run(side: Side) -> None:
    async def scenario() -> None:
        async with connected(side, "a") as one, connected(side, "b") as other:
            side.inbox.finish()
            one.send(Bye("finished"))
            await until(lambda: len(side.channel.peers()) == 1)
            await asyncio.sleep(0.3)
            assert not side.inbox.gone.is_set()
            other.send(Bye("finished"))
            await until(side.inbox.gone.is_set)

    run(scenario())


def test_weights_that_were_refused_are_offered_again(side: Side) -> None:
    """The first ones: without them the actor would wait for ever, and the run with it."""

    async def scenario() -> None:
        async with connected(side) as actor:
            side.announce(0)
            for _ in range(2):
                assert await next_weights(actor) == 0
                actor.send(WeightsRejected(0, -1, "not there yet"))
            assert await next_weights(actor) == 0
            actor.send(WeightsApplied(0, 0.0, 0.0, 0.0, 0))
            side.announce(1)  # the strikes are forgiven
            for _ in range(2):
                assert await next_weights(actor) == 1
                actor.send(WeightsRejected(1, 0, "canary"))
            assert await next_weights(actor) == 1

    run(scenario())
    assert side.inbox.weights_rejected == 4
    assert side.stream.failure is None


def test_an_actor_that_was_overtaken_is_offered_newer_weights_and_is_not_to_blame(
    side: Side,
) -> None:
    async def run() -> None:
        async with connected(side) as slow:
            await until(lambda: len(side.channel.peers()) == 1)
            for version in range(2):
                side.announce(version)
                assert await next_weights(slow) == version
                side.readers.applied("actor-0", version)
            for version in range(2, 6):  # each refused only once it has been replaced
                side.announce(version)
                assert await next_weights(slow) == version
                side.readers.applied("actor-0", version)
                slow.send(WeightsRejected(version - 2, 1, "not there any more"))
                assert await next_weights(slow) == version, "offered again"
        assert side.inbox.weights_rejected == 0
        assert side.stream.failure is None

    asyncio.run(run())


def test_one_actor_that_takes_no_weights_is_refused_and_the_run_goes_on(
    side: Side, make: Any
) -> None:
    async def refuse(actor: ActorChannel) -> None:
        while True:
            actor.send(WeightsRejected(await next_weights(actor), -1, "wrong model"))

    async def scenario() -> None:
        async with connected(side, "good") as good, connected(side, "bad") as bad:
            side.announce(0)
            assert await next_weights(good) == 0
            good.send(WeightsApplied(0, 0.0, 0.0, 0.0, 0))
            with pytest.raises(Disconnected, match=r"3 refusals in a row.*wrong model"):
                await refuse(bad)
            assert side.stream.failure is None
            assert [peer.actor for peer in side.channel.peers()] == ["good"]
            side.announce(1)
            assert side.readers.free() is None, "only the good one reads"
            good.send(WeightsApplied(1, 0.0, 0.0, 0.0, 0))
            await until(lambda: side.readers.free() == 0)
            await send(good, make("t"))
            await until(lambda: side.stream.counts()["waiting"] == 1)
        async with connected(side, "bad"):  # started again: it gets another chance
            await until(lambda: "bad" in [peer.actor for peer in side.channel.peers()])

    run(scenario())


def test_no_actor_that_takes_weights_is_the_end(side: Side) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            side.announce(0)
            for _ in range(3):
                actor.send(WeightsRejected(await next_weights(actor), -1, "no room"))
            await until(lambda: side.stream.failure is not None)

    run(scenario())
    assert side.stream.failure is not None
    assert "3 refusals in a row" in side.stream.failure
    assert side.stream.failure.endswith("no room")


def test_after_the_end_an_actor_may_keep_the_weights_it_has(side: Side) -> None:
    async def scenario() -> None:
        async with connected(side) as actor:
            side.announce(0)
            side.inbox.finish()
            for _ in range(3):
                actor.send(WeightsRejected(await next_weights(actor), 4, "canary"))
            await until(lambda: side.inbox.weights_rejected == 3)
            actor.send(Bye("finished"))
            await until(side.inbox.gone.is_set)

    run(scenario())
    assert side.stream.failure is None


@pytest.mark.parametrize("who", ["sender", "channel", "inbox"])
def test_a_thread_that_dies_ends_the_training_with_its_error(
    side: Side, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise MemoryError(f"in the {who}")

    threading.Timer(
        0.1,
        lambda: {
            "sender": lambda: setattr(side.readers, "failure", MemoryError("in the sender")),
            "channel": lambda: monkeypatch.setattr(side.channel, "_notice_lost", broken),
            "inbox": lambda: monkeypatch.setattr(side.inbox, "_offer_due", broken),
        }[who](),
    ).start()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"a thread died: MemoryError: in the {who}"):
        side.stream.take(1, 30.0)
    assert time.monotonic() - began < 10
