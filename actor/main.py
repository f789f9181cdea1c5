"""One actor process: `dynatok actor RUN/actor.yaml`.

Start the engine, say hello, take weights 0, evaluate, then collect until the learner says
`Finish`: take its last weights, evaluate again, say good-bye. SIGTERM and SIGINT end it cleanly
at any point of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from actor.collector import Collector
from actor.config import ActorConfig, SamplingConfig
from actor.engine import VllmEngine
from actor.evaluation import evaluate, write_json
from actor.serving import Serving
from actor.session import LiveSession
from actor.task_source import tasks
from actor.weight_receiver import Fenced, WeightReceiver
from dynatok_online import tiny
from dynatok_online.metrics import Metrics
from dynatok_online.tasks import Task
from dynatok_online.trajectory import Trajectory
from protocol.actor_channel import ActorChannel, Disconnected
from protocol.messages import (
    Bye,
    Finish,
    Hello,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsReady,
    WeightsRejected,
)
from protocol.shm import ShmReceiver

GRACE = 4.0
"""Seconds between a signal and the end of the process, whatever it is doing."""


class Stopped(BaseException):
    """Asked to stop by a signal."""


def run(config: ActorConfig) -> int:
    """Run an actor to its end; the exit code of its process."""

    def stop(number: int, frame: FrameType | None) -> None:
        _end_within_grace()
        raise Stopped(signal.Signals(number).name)

    # While vLLM starts there is no event loop to tell: the exception unwinds the start.
    previous = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    engine: VllmEngine | None = None
    try:
        begun = time.monotonic()
        model = tiny.resolve(config.model)
        engine = VllmEngine.start(
            model,
            config.engine,
            environment=config.environment,
            run_id=config.run_id,
            seed=config.seed,
        )
        say(f"engine ready after {time.monotonic() - begun:.1f} s")
        return asyncio.run(Actor(config, engine, model).run())
    except Stopped as error:
        say(f"stopped by {error}")
        return 0
    except (Disconnected, Fenced, ValueError) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # already on the way out
        if engine is not None:
            engine.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line for people, in the process's log."""
    print(f"actor: {text}", file=sys.stderr, flush=True)


class Actor:
    """What an actor does once its engine runs."""

    def __init__(self, config: ActorConfig, engine: VllmEngine, model: str) -> None:
        self._config = config
        self._engine = engine
        self._run_dir = Path(config.run_dir)
        self._serving = Serving(engine, config.run_id)
        self._transport = ShmReceiver(config.run_id)
        self._weights = WeightReceiver(
            engine, self._serving, self._transport, timeout=config.weights_timeout
        )
        self._encode, self._decode = load_tokenizer(model)
        self._channel = ActorChannel(
            config.protocol,
            config.run_id,
            "actor-0",
            Hello(model=config.model, block_size=engine.block_size, pid=os.getpid()),
        )
        self._collector = Collector(
            tasks(config.tasks, "train", config.seed),
            config.sessions,
            lambda task: self._session(task, config.sampling),
            self,
        )
        self._metrics = Metrics(config.run_dir, "actor")
        self._syncs = 0
        self._rejected = 0
        self._updated = asyncio.Event()
        self._final: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Run until `Finish`, a signal or an error; the exit code."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[str] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, stopped, signal.Signals(number).name)
        work = asyncio.create_task(self._work())
        try:
            either: set[asyncio.Future[Any]] = {work, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return 0
            say(f"stopped by {stopped.result()}")
            work.cancel()
            await asyncio.wait({work}, timeout=3)
            return 0
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            with contextlib.suppress(Exception):
                self._report()
            self._metrics.close()
            self._transport.close()
            await self._channel.close()

    # The collector's outlet.

    async def acquire(self) -> None:
        """Wait for a credit and take it."""
        await self._channel.acquire()

    def give_back(self) -> None:
        """Return a credit that was not used."""
        self._channel.give_back()

    def send_trajectory(self, trajectory: Trajectory) -> None:
        """Send a finished trajectory."""
        self._channel.send(TrajectoryMessage(trajectory))

    async def _work(self) -> None:
        await self._channel.start()
        self._final = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            listen = group.create_task(self._listen())
            report = group.create_task(self._report_often())
            await self._serving.ready()
            say(f"serving weights {self._serving.version}")
            await self._evaluate("before")
            collect = group.create_task(self._collector.run())
            await self._final
            await _cancel(collect)
            await self._wait_for_version(self._final.result())
            await self._channel.drain(self._config.finish_timeout)
            await self._evaluate("after")
            self._report()
            self._channel.send(Bye("finished"))
            await _cancel(listen)
            await _cancel(report)

    async def _listen(self) -> None:
        """Apply weights as they are announced, until `Finish`."""
        while True:
            message = await self._channel.receive()
            if isinstance(message, WeightsReady):
                await self._update(message.manifest)
            elif isinstance(message, Finish):
                assert self._final is not None
                if not self._final.done():
                    self._final.set_result(message.version)

    async def _update(self, manifest: WeightManifest) -> None:
        answer = await self._weights.update(manifest)
        self._channel.send(answer)
        if isinstance(answer, WeightsApplied):
            self._syncs += manifest.version > 0
            self._metrics.log(
                manifest.version,
                weight_version=manifest.version,
                pause_seconds=answer.pause_seconds,
                fetch_seconds=answer.fetch_seconds,
                canary_gap=answer.canary_gap,
                restarted_passes=answer.restarted_passes,
            )
        else:
            assert isinstance(answer, WeightsRejected)
            self._rejected += 1
            say(f"weights {answer.version} rejected, serving {answer.serving}: {answer.reason}")
        self._updated.set()

    async def _wait_for_version(self, version: int) -> None:
        """The last weights are announced before `Finish`, but may have to be announced again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.finish_timeout):
                while self._serving.version < version:
                    self._updated.clear()
                    await self._updated.wait()
        if self._serving.version < version:
            say(f"the last weights are {version}, but {self._serving.version} serve")

    async def _evaluate(self, name: str) -> None:
        settings = self._config.evaluation
        if not settings.enabled:
            return
        sampling = SamplingConfig(
            temperature=settings.temperature, ignore_eos=self._config.sampling.ignore_eos
        )
        summary, _ = await evaluate(
            tasks(self._config.tasks, "heldout", settings.seed),
            settings.tasks,
            self._config.sessions,
            lambda task: self._session(task, sampling, seeded=True),
        )
        summary = {"version": self._serving.version, **summary}
        write_json(self._run_dir / "evaluation" / f"{name}.json", summary)
        say(
            f"evaluation {name}: adherence after edit {summary['adherence_after_edit']} over "
            f"{summary['passes_after_edit']} passes, static {summary['adherence_static']}"
        )
        self._metrics.log(
            self._serving.version,
            evaluation_adherence_after_edit=_number(summary["adherence_after_edit"]),
            evaluation_adherence_static=_number(summary["adherence_static"]),
            evaluation_seconds=summary["seconds"],
        )

    def _session(
        self, task: Task, sampling: SamplingConfig, *, seeded: bool | None = None
    ) -> LiveSession:
        return LiveSession(
            task,
            self._serving,
            encode=self._encode,
            decode=self._decode,
            sampling=sampling,
            seeded=self._config.seeded if seeded is None else seeded,
        )

    async def _report_often(self) -> None:
        tokens, at = 0, time.monotonic()
        while True:
            await asyncio.sleep(self._config.report_every)
            now, generated = time.monotonic(), self._collector.counts.generated_tokens
            self._report(tokens_per_second=(generated - tokens) / (now - at))
            tokens, at = generated, now

    def _report(self, **numbers: float) -> None:
        summary = self.summary()
        write_json(self._run_dir / "actor.json", summary)
        plain = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        self._metrics.log(None, **plain, **numbers, free_credits=self._channel.free_credits)

    def summary(self) -> dict[str, Any]:
        """The numbers of the run so far."""
        collector = self._collector
        counts = collector.counts
        return {
            "trajectories": collector.trajectories,
            "edits": counts.edits,
            "passes": counts.passes,
            "empty_passes": counts.empty_passes,
            "generated_tokens": counts.generated_tokens,
            "computed_tokens": counts.computed_tokens,
            "reused_tokens": counts.reused_tokens,
            "audit_mismatches": counts.audit_mismatches,
            "problems": collector.problems,
            "weight_version": self._serving.version,
            "weight_syncs": self._syncs,
            "weights_rejected": self._rejected,
            "dropped": dict(collector.dropped),
            "adherence": collector.adherence,
        }


def load_tokenizer(
    model: str,
) -> tuple[Callable[[str], list[int]], Callable[[Any], str]]:
    """`encode` (no special tokens, each text once) and `decode` (special tokens left out)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    @lru_cache(maxsize=4096)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def decode(token_ids: Any) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

    return lambda text: list(encode(text)), decode


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def _stop(future: asyncio.Future[str], name: str) -> None:
    if not future.done():
        _end_within_grace()
        future.set_result(name)


def _end_within_grace() -> None:
    """A library may be starting processes or be deaf: leave nothing behind, and go."""

    def end() -> None:
        say(f"still busy {GRACE:.0f} s after the signal: ending at once")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(0)

    timer = threading.Timer(GRACE, end)
    timer.daemon = True
    timer.start()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
