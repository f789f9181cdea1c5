"""An actor's life, once its engine runs.

Say hello, take weights, evaluate, then collect (and evaluate now and then, if asked to) until the
learner says `Finish`: take its last weights, evaluate again, say good-bye. One that was killed and
is started again sends what is still in its journal, and resumes its script of tasks where its
trajectories end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from actor.config import ActorConfig, SamplingConfig
from actor.engine.engine import VllmEngine
from actor.log import say
from actor.online import visitors
from actor.online.collector import Collector
from actor.online.evaluation import evaluate
from actor.online.report import Report
from actor.online.visitors import Visits
from actor.online.weight_updater import WeightUpdater
from actor.sessions.live_session import LiveSession
from actor.sessions.rules import open_session
from actor.sessions.serving import Serving
from actor.task_groups import cancel, first_error
from actor.task_source import repeated, tasks
from actor.tokenizer import BorderNotice, chat_of, load_tokenizer
from dynatok_online.tasks.files import Split
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.durable import JournaledOutbox
from protocol.run.endpoint import find_endpoint
from protocol.run.trace import KEY, Traces
from protocol.weights.transports import FollowingReceiver
from protocol.wire.messages import (
    Bye,
    Finish,
    Hello,
    TrajectoryMessage,
    WeightManifest,
    WeightsComing,
    WeightsReady,
)


class Actor:
    """Everything that one actor is made of; `run` is its life."""

    def __init__(
        self,
        config: ActorConfig,
        engine: VllmEngine,
        model: str,
        visits: Visits | None = None,
    ) -> None:
        self._config = config
        self._visits = visits
        self._run_dir = Path(config.run_dir)
        self._serving = Serving(engine, config.run_id, config.on_weights)
        self._transport = FollowingReceiver(config.protocol, config.run_id, self._run_dir)
        self._weights = WeightUpdater(
            engine, self._serving, self._transport, timeout=config.weights_timeout
        )
        self._tokenizer = load_tokenizer(model)
        self._notice = BorderNotice(self._tokenizer.encode, config.placement, say)
        self._outbox = JournaledOutbox(
            self._run_dir / "journal" / config.name,
            config.run_id,
            config.name,
            max_bytes=config.journal_bytes,
            max_message_bytes=config.protocol.max_message_bytes,
        )
        for problem in self._outbox.problems():
            say(problem)
        self._channel = ActorChannel(
            config.protocol,
            config.run_id,
            config.name,
            Hello(model=config.model, block_size=engine.block_size, pid=os.getpid()),
            outbox=self._outbox,
            where=partial(find_endpoint, self._run_dir, config.protocol.endpoint),
        )
        self._script = repeated(self._source("train", config.seed), config.responses_per_task)
        self._collector = Collector(
            self._tasks(),
            config.sessions,
            lambda task: self._session(task, config.sampling, seeded=config.seeded),
            self,
        )
        self._traces = Traces(config.run_dir, config.name)
        self._report = Report(config, self._collector, self._serving, self._channel)
        self._updated = asyncio.Event()
        self._final: asyncio.Future[int] | None = None

    async def run(self, stopped: asyncio.Future[str]) -> None:
        """Run until `Finish`, until `stopped` holds a reason, or until an error."""
        work = asyncio.create_task(self._work())
        try:
            either: set[asyncio.Future[Any]] = {work, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return
            say(f"stopped by {stopped.result()}")
            work.cancel()
            await asyncio.wait({work}, timeout=3)
            if self._channel.connected:
                self._channel.send(Bye(f"stopped by {stopped.result()}"))
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            with contextlib.suppress(Exception):
                self._report.write()
            self._report.close()
            self._traces.close()
            self._transport.close()
            await self._channel.close()
            self._outbox.close()

    # The collector's outlet.

    async def acquire(self) -> None:
        """Wait for a credit and take it."""
        await self._channel.acquire()

    def give_back(self) -> None:
        """Return a credit that was not used."""
        self._channel.give_back()

    def send_trajectory(self, trajectory: Trajectory, tasks: tuple[int, ...]) -> None:
        """Send a finished trajectory: into the journal, as soon as the disk has room for it."""
        self._send(trajectory, str(tasks[0]), tasks)

    def _send(self, trajectory: Trajectory, name: str, tasks: tuple[int, ...] = ()) -> None:
        """`name`: what tells it from all others of this process, for its trace."""
        trace = f"{self._config.name}.{self._outbox.epoch}.{name}"
        trajectory = msgspec.structs.replace(trajectory, info={**trajectory.info, KEY: trace})
        stored = partial(
            self._traces.write,
            "sent",
            trace=trace,
            task=trajectory.trajectory_id,
            edits=[(one.slot, one.requested_at, one.effective_at) for one in trajectory.edits],
            tokens=len(trajectory.response),
            oldest_version=trajectory.oldest_version,
        )
        self._channel.send(TrajectoryMessage(trajectory, tasks), stored)

    def _source(self, split: Split, seed: int) -> Iterator[Task]:
        config = self._config
        chat = partial(
            chat_of,
            config.model,
            config.placement,
            config.system_prompt,
            config.chat_template_kwargs,
        )
        return tasks(config.tasks, split, seed, chat=chat)

    def _tasks(self) -> Iterator[tuple[int, Task]]:
        """The script of this actor, without what is done. Asked for once it is connected."""
        for number, task in enumerate(self._script):
            if number not in self._channel.tasks:
                yield number, task

    async def _work(self) -> None:
        await self._channel.start()
        self._final = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            listen = group.create_task(self._listen())
            report = group.create_task(self._report.write_often())
            visiting = group.create_task(self._receive_visitors(self._visits))
            await self._serving.ready()
            say(f"serving weights {self._serving.version}")
            if not (self._run_dir / "evaluation" / "before.json").exists():
                await self._evaluate("before")
            collect = group.create_task(self._collector.run())
            watch = group.create_task(self._evaluate_often())
            await self._final
            await cancel(watch)
            await cancel(collect)
            await self._wait_for_version(self._final.result())
            if unsent := await self._channel.drain(self._config.finish_timeout):
                say(f"{unsent} trajectories were not taken by the learner before the end")
            await self._evaluate("after")
            self._report.write()
            self._channel.send(Bye("finished"))
            await cancel(visiting)
            await cancel(listen)
            await cancel(report)

    async def _receive_visitors(self, visits: Visits | None) -> None:
        """Let visitors in, if there is a page."""
        if visits is None:
            return
        name, model = self._config.name, self._config.model

        async def send(trajectory: Trajectory) -> None:
            await self._channel.acquire()
            self._send(trajectory, trajectory.trajectory_id)
            say(f"sent the visitor's trajectory {trajectory.trajectory_id}")

        page = partial(visits, self._run_dir, name, model, self._serving, self._tokenizer)
        await visitors.receive(page, send)

    async def _listen(self) -> None:
        """Apply weights as they are announced, until `Finish`."""
        while True:
            message = await self._channel.receive()
            if isinstance(message, WeightsReady):
                await self._update(message.manifest)
            elif isinstance(message, WeightsComing):
                self._transport.expect(message)
            elif isinstance(message, Finish):
                assert self._final is not None
                if not self._final.done():
                    self._final.set_result(message.version)

    async def _update(self, manifest: WeightManifest) -> None:
        answer = await self._weights.update(manifest)
        self._channel.send(answer)
        self._report.weights(answer)
        self._updated.set()

    async def _wait_for_version(self, version: int) -> None:
        """The last weights are announced before `Finish`, but may have to be announced again.

        An update that has begun may take as long as it needs.
        """
        idle_since = time.monotonic()
        while self._serving.version < version:
            self._updated.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.5, self._config.finish_timeout)):
                    await self._updated.wait()
            if self._weights.updating:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self._config.finish_timeout:
                break
        if self._serving.version < version:
            say(f"the last weights are {version}, but {self._serving.version} serve")

    async def _evaluate_often(self) -> None:
        """Beside collecting, every so many weight versions."""
        every = self._config.evaluation.every
        while every:
            due = (self._serving.version // every + 1) * every
            while self._serving.version < due:
                self._updated.clear()
                await self._updated.wait()
            await self._evaluate(f"weights-{self._serving.version:06d}")

    async def _evaluate(self, name: str) -> None:
        settings = self._config.evaluation
        if not settings.enabled:
            return
        sampling = SamplingConfig(
            temperature=settings.temperature, ignore_eos=self._config.sampling.ignore_eos
        )
        summary, written = await evaluate(
            self._source("heldout", settings.seed),
            settings.tasks,
            self._config.sessions,
            lambda task: self._session(task, sampling, seeded=True),
            self._tokenizer.decode,
        )
        self._report.evaluation(name, summary, [one.trajectory for one in written])

    def _session(self, task: Task, sampling: SamplingConfig, *, seeded: bool) -> LiveSession:
        self._notice(task)
        return open_session(
            task,
            self._serving,
            encode=self._tokenizer.encode,
            decode=self._tokenizer.decode,
            sampling=sampling,
            seeded=seeded,
            reuse=self._config.reuse,
            placement=self._config.placement,
        )
