"""Runs live sessions without end and hands every finished trajectory to the learner.

A session starts only with a credit, and each credit ends in exactly one of two ways: its
trajectory was sent, or it was given back and the reason counted. Tasks are numbered, and each
number goes out with a trajectory, so that an actor that starts again knows which are done.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from actor.online.evaluation import MakeSession
from actor.online.session_time import SessionTime
from actor.sessions.live_session import Finished
from actor.sessions.recorder import Counts
from actor.sessions.usable import Usable
from dynatok_online.adherence.stretches import edited_scores
from dynatok_online.adherence.summary import share
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory

RECENT = 256
"""Edits over which the running adherence is taken."""


class Outlet(Protocol):
    """Where finished trajectories go, against credits."""

    async def acquire(self) -> None:
        """Wait for a credit and take it."""
        ...

    def give_back(self) -> None:
        """Return a credit that was not used."""
        ...

    def send_trajectory(self, trajectory: Trajectory, tasks: tuple[int, ...]) -> None:
        """Send a trajectory, with the tasks that are done with it; uses up a credit."""
        ...


class Collector:
    """`sessions` live sessions at once; run it as a task and cancel it to stop."""

    def __init__(
        self, tasks: Iterator[tuple[int, Task]], sessions: int, make: MakeSession, outlet: Outlet
    ) -> None:
        self._tasks = tasks
        self._unsent_tasks: list[int] = []
        self._sessions = sessions
        self._make = make
        self._outlet = outlet
        self.counts = Counts()
        self.trajectories = 0
        """Finished and sent."""
        self._waiting = SessionTime()
        self._generating = SessionTime()
        self._usable = Usable()
        self._recent: deque[float] = deque(maxlen=RECENT)

    @property
    def seconds_waiting(self) -> float:
        """Waited for credits, over all sessions."""
        return self._waiting.seconds

    @property
    def seconds_generating(self) -> float:
        """Spent on responses, over all sessions."""
        return self._generating.seconds

    @property
    def dropped(self) -> Counter[str]:
        """Started and not sent, by cause."""
        return self._usable.dropped

    @property
    def problems(self) -> Sequence[str]:
        """The first reports of the engine that cannot be true."""
        return self._usable.problems

    @property
    def adherence(self) -> dict[str, Any]:
        """Mean score of the latest edits, half its 95 % interval, and how many they are."""
        return share(self._recent)

    async def run(self) -> None:
        """Collect until cancelled. A session that fails ends the collector with its error."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._sessions):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0)  # a session without a pass never waits
            with self._waiting.one():
                await self._outlet.acquire()
            number, task = next(self._tasks)
            session = self._make(task)
            try:
                with self._generating.one():
                    finished = await session.run()
            except BaseException as error:
                cancelled = isinstance(error, asyncio.CancelledError)
                self.dropped["unfinished" if cancelled else "failed"] += 1
                self._outlet.give_back()
                raise
            self._take(number, finished)

    def _take(self, number: int, finished: Finished) -> None:
        self.counts.add(finished.counts)
        usable = False
        try:
            usable = self._usable.take(finished)
        finally:
            if not usable:
                self._outlet.give_back()
        if not usable:
            self._unsent_tasks.append(number)
            return
        self._recent.extend(edited_scores([finished.trajectory]))
        self._outlet.send_trajectory(finished.trajectory, (number, *self._unsent_tasks))
        self._unsent_tasks.clear()
        self.trajectories += 1
