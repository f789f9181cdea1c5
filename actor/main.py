"""One actor process: `dynatok actor RUN/actor.yaml`.

Start the engine, say hello, take weights, evaluate, then collect until the learner says `Finish`:
take its last weights, evaluate again, say good-bye. SIGTERM and SIGINT end it cleanly at any point
of this. One that was killed and is started again sends what its journal still holds, and goes on
in its script of tasks where its trajectories end.

Exit codes: 0 done or told to stop, 1 it failed (starting it again may help), 2 what was asked for
cannot be run.
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
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from actor.collector import Collector
from actor.config import ActorConfig, SamplingConfig
from actor.demo.door import door
from actor.demo.lane import Tokenizer
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
from protocol.durable import JournaledOutbox
from protocol.exporter import open_exporter
from protocol.messages import (
    Bye,
    Finish,
    Hello,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsComing,
    WeightsReady,
    WeightsRejected,
)
from protocol.trace import KEY, Traces
from protocol.transports import FollowingReceiver

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
    except (Disconnected, Fenced) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    except ValueError as error:
        say(f"{error}")
        return 2
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
        self._serving = Serving(engine, config.run_id, config.on_weights)
        self._transport = FollowingReceiver(config.protocol, config.run_id, self._run_dir)
        self._weights = WeightReceiver(
            engine, self._serving, self._transport, timeout=config.weights_timeout
        )
        self._encode, self._decode = load_tokenizer(model)
        self._outbox = JournaledOutbox(
            self._run_dir / "journal" / config.name,
            config.run_id,
            config.name,
            max_bytes=config.journal_bytes,
            max_message_bytes=config.protocol.max_message_bytes,
        )
        self._channel = ActorChannel(
            config.protocol,
            config.run_id,
            config.name,
            Hello(model=config.model, block_size=engine.block_size, pid=os.getpid()),
            outbox=self._outbox,
        )
        self._script = tasks(config.tasks, "train", config.seed)
        self._collector = Collector(
            self._tasks(),
            config.sessions,
            lambda task: self._session(task, config.sampling),
            self,
        )
        self._metrics = Metrics(config.run_dir, config.name)
        self._traces = Traces(config.run_dir, config.name)
        self._exporter = open_exporter(
            self._run_dir, config.run_id, config.name, config.prometheus_port
        )
        self._summary_path = self._run_dir / f"{config.name}.json"
        self._before = _read_json(self._summary_path)
        self._syncs = 0
        self._seconds_paused = 0.0
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
            if self._channel.connected:
                self._channel.send(Bye(f"stopped by {stopped.result()}"))
            return 0
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            with contextlib.suppress(Exception):
                self._report()
            self._metrics.close()
            self._traces.close()
            if self._exporter is not None:
                self._exporter.close()
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
        """Send a finished trajectory; it is in the journal when this returns."""
        trace = f"{self._config.name}.{self._outbox.epoch}.{tasks[0]}"
        trajectory = msgspec.structs.replace(trajectory, info={**trajectory.info, KEY: trace})
        self._channel.send(TrajectoryMessage(trajectory, tasks))
        if self._channel.paused is None:
            self._traces.write(
                "sent",
                trace=trace,
                task=trajectory.trajectory_id,
                edits=[(one.slot, one.requested_at, one.effective_at) for one in trajectory.edits],
                tokens=len(trajectory.response),
                oldest_version=trajectory.oldest_version,
            )

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
            report = group.create_task(self._report_often())
            visitors = group.create_task(self._receive_visitors())
            await self._serving.ready()
            say(f"serving weights {self._serving.version}")
            if not (self._run_dir / "evaluation" / "before.json").exists():
                await self._evaluate("before")
            collect = group.create_task(self._collector.run())
            await self._final
            await _cancel(collect)
            await self._wait_for_version(self._final.result())
            await self._channel.drain(self._config.finish_timeout)
            await self._evaluate("after")
            self._report()
            self._channel.send(Bye("finished"))
            await _cancel(visitors)
            await _cancel(listen)
            await _cancel(report)

    async def _receive_visitors(self) -> None:
        """Let `dynatok demo --run` in."""

        async def send(trajectory: Trajectory) -> None:
            await self._channel.acquire()
            self._channel.send(TrajectoryMessage(trajectory))

        tokenizer = Tokenizer(self._encode, self._decode)
        config = self._config
        async with door(self._run_dir, config.name, config.model, self._serving, tokenizer, send):
            await asyncio.Future()  # until cancelled

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
        if isinstance(answer, WeightsApplied):
            self._syncs += manifest.version > 0
            self._seconds_paused += answer.pause_seconds
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
            reuse=self._config.reuse,
            placement=self._config.placement,
        )

    async def _report_often(self) -> None:
        tokens, at = 0, time.monotonic()
        paused: str | None = None
        while True:
            await asyncio.sleep(self._config.report_every)
            if self._channel.paused != paused:
                paused = self._channel.paused
                say("there is room again" if paused is None else f"pausing: {paused}")
            now, generated = time.monotonic(), self._collector.counts.generated_tokens
            self._report(tokens_per_second=(generated - tokens) / (now - at))
            tokens, at = generated, now

    def _report(self, **numbers: float) -> None:
        summary = self.summary()
        write_json(self._summary_path, summary)
        plain = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        numbers["free_credits"] = self._channel.free_credits
        self._metrics.log(None, **plain, **numbers)
        if self._exporter is not None:
            self._exporter.set(plain | numbers)

    def summary(self) -> dict[str, Any]:
        """The numbers of the run so far."""
        collector = self._collector
        counts = collector.counts
        now: dict[str, Any] = {
            "trajectories": collector.trajectories,
            "edits": counts.edits,
            "passes": counts.passes,
            "empty_passes": counts.empty_passes,
            "generated_tokens": counts.generated_tokens,
            "computed_tokens": counts.computed_tokens,
            "reused_tokens": counts.reused_tokens,
            "audit_mismatches": counts.audit_mismatches,
            "problems": collector.problems,
            "seconds_wait_for_credit": collector.seconds_waiting,
            "seconds_generate": collector.seconds_generating,
            "seconds_weights": self._seconds_paused,
            "weight_syncs": self._syncs,
            "weights_rejected": self._rejected,
            "dropped": dict(collector.dropped),
        }
        # What a process of this name counted before it was killed stays counted.
        return _added(self._before, now) | {
            "weight_version": self._serving.version,
            "adherence": collector.adherence,
            "paused": self._channel.paused,
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


def _read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    return {}


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Numbers are added up, lists put together, and so on inside."""
    out = before | now
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        out[name] = _added(old, new) if isinstance(new, dict) else old + new
    return out


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
