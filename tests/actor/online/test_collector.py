"""Every credit ends in a trajectory sent or a reason counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count, repeat

import pytest

from actor.online.collector import Collector
from actor.sessions.serving import Serving
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory
from tests.actor.fake import FakeEngine
from tests.actor.sessions.test_live_session import make, task


class FakeOutlet:
    def __init__(self, credits: int) -> None:
        self.credits = asyncio.Semaphore(credits)
        self.sent: list[Trajectory] = []
        self.tasks: list[int] = []
        self.given_back = 0
        self.taken = 0

    async def acquire(self) -> None:
        await self.credits.acquire()
        self.taken += 1

    def give_back(self) -> None:
        self.given_back += 1
        self.credits.release()

    def send_trajectory(self, trajectory: Trajectory, tasks: tuple[int, ...]) -> None:
        self.sent.append(trajectory)
        self.tasks += tasks


def endless() -> Iterator[tuple[int, Task]]:
    return zip(count(), repeat(task((5, task().states["s"]))), strict=False)


def collect(engine: FakeEngine, outlet: FakeOutlet, until: float = 0.2) -> Collector:
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    collector = Collector(endless(), 4, lambda one: make(engine, one, serving=serving), outlet)

    async def scenario() -> None:
        running = asyncio.create_task(collector.run())
        await asyncio.wait({running}, timeout=until)
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled() and running.exception() is not None:
            raise running.exception()  # type: ignore[misc]

    asyncio.run(scenario())
    return collector


def test_no_credit_no_trajectory() -> None:
    outlet = FakeOutlet(credits=6)
    collector = collect(FakeEngine(), outlet)
    assert collector.trajectories == len(outlet.sent) == 6
    assert sorted(outlet.tasks) == list(range(6))
    assert outlet.taken == 6
    assert collector.counts.generated_tokens == 6 * 20
    assert not collector.dropped


def test_unfinished_sessions_are_counted_and_their_credits_returned() -> None:
    engine = FakeEngine()

    async def slow(request: object) -> None:
        await asyncio.sleep(0.05)

    engine.step = slow  # type: ignore[method-assign]
    outlet = FakeOutlet(credits=100)
    collector = collect(engine, outlet)
    assert collector.dropped["unfinished"] == 4
    assert outlet.given_back == 4
    assert outlet.taken == len(outlet.sent) + outlet.given_back


def test_tasks_that_leave_no_room_are_an_error() -> None:
    outlet = FakeOutlet(credits=3)
    with pytest.raises(BaseExceptionGroup) as error:
        collect(FakeEngine(max_model_len=5), outlet, until=30)  # it ends by itself
    assert error.group_contains(ValueError, match="max_model_len")
    assert outlet.sent == []
    assert outlet.taken == outlet.given_back


def test_what_the_engine_contradicts_is_not_sent() -> None:
    engine = FakeEngine()
    engine.cache_log.lies["run/2"] = None
    outlet = FakeOutlet(credits=6)
    collector = collect(engine, outlet)
    assert collector.dropped == {"contradicted": 1}
    assert outlet.given_back == 1
    assert sorted(outlet.tasks) == list(range(7))
    assert len(outlet.sent) == collector.trajectories == 6


def test_a_failing_session_ends_the_collector() -> None:
    engine = FakeEngine()

    def step(request: object) -> None:
        raise RuntimeError("the engine died")

    engine.on_step = step
    with pytest.raises(BaseExceptionGroup):
        collect(engine, FakeOutlet(credits=10), until=30)
