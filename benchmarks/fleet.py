"""How many actors one learner serves, and how fairly: `dynatok bench fleet`.

Real clients of the protocol without engines, in a few processes of their own, send trajectories
over loopback to a real learner channel with its journal. Ten of them, then the whole fleet, in one
run, so that the two can be compared on a machine that also does other things:

- as fast as credits let them: trajectories a second, the least and the most served;
- paced at half of what ten reached: time from sent to acknowledged;
- new weights announced: time until every actor has heard of a version.

The learner takes each trajectory as soon as it is stored. `--room` bounds what may be in flight or
waiting in all, as `learner.max_policy_lag` does in a run: then credits are few, and are shared out.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.wire import sample
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.delivery import Outbox
from protocol.delivery.durable import JournaledStore
from protocol.delivery.learner_channel import LearnerChannel
from protocol.wire.keys import make_keys
from protocol.wire.messages import (
    Canary,
    Hello,
    TrajectoryMessage,
    WeightManifest,
    WeightsReady,
)
from protocol.wire.socket import new_epoch

_RUN = "bench-fleet"
_FEW = 10
_VERSIONS = 5
_CANARY = Canary((), (), 0.0)


class FleetResult(msgspec.Struct):
    """What one fleet reached."""

    actors: int
    per_second: float
    """Trajectories acknowledged, as fast as credits let them."""
    least: int
    most: int
    """Trajectories of the least and of the most served actor in that time."""
    offered_per_second: float
    """Of the paced part."""
    paced_per_second: float
    p50_ms: float
    p99_ms: float
    """From sent to acknowledged, paced."""
    heard_s: float
    """From announcing a version until the last actor has heard of it: the worst of a few."""
    joined_s: float
    """From the first hello until all are there."""
    learner_mb: float
    """Resident memory of the learner's process."""
    learner_cpu_us: float
    """CPU time of the learner's process per trajectory, as fast as credits let them."""


class _Timed(Outbox):
    """Notes how long each frame was unacknowledged."""

    def __init__(self) -> None:
        super().__init__(new_epoch())
        self.sent: dict[int, float] = {}
        self.seconds: list[float] = []
        self.done = 0

    def put(self, epoch: int, sequence: int, frame: bytes) -> None:
        self.sent[sequence] = time.monotonic()
        super().put(epoch, sequence, frame)

    def acknowledge(self, epoch: int, sequence: int) -> int:
        done = super().acknowledge(epoch, sequence)
        now = time.monotonic()
        for number in [one for one in self.sent if one <= sequence]:
            self.seconds.append(now - self.sent.pop(number))
        self.done += done
        return done


class _Client:
    """One actor without an engine."""

    def __init__(self, config: ProtocolConfig, name: str, message: TrajectoryMessage) -> None:
        self.outbox = _Timed()
        self.channel = ActorChannel(config, _RUN, name, Hello("none", 32, 0), outbox=self.outbox)
        self._message = message
        self.every = 0.0
        """Seconds between two trajectories; 0: as fast as credits allow."""
        self.sending = asyncio.Event()
        self.heard: dict[int, float] = {}

    async def send(self, phase: float) -> None:
        """Send while `sending` is set. `phase`: where in its interval this one begins."""
        due = 0.0
        while True:
            if not self.sending.is_set():
                await self.sending.wait()
                due = time.monotonic() + self.every * phase
            if self.every:
                now = time.monotonic()
                if due < now - self.every:  # from before: what was missed is not made up for
                    due = now + self.every * phase
                await asyncio.sleep(due - now)
                due += self.every
            await self.channel.acquire()
            self.channel.send(self._message)
            await asyncio.sleep(0)  # others of this process have their turn

    async def listen(self) -> None:
        """Note when versions are heard of."""
        while True:
            message = await self.channel.receive()
            if isinstance(message, WeightsReady):
                self.heard[message.manifest.version] = time.monotonic()


def _clients(config: ProtocolConfig, names: list[str], tokens: int, pipe: Connection) -> None:
    """A process with some of the fleet; obeys the parent's words."""
    asyncio.run(_serve(config, names, tokens, pipe))


async def _serve(config: ProtocolConfig, names: list[str], tokens: int, pipe: Connection) -> None:
    message = TrajectoryMessage(sample(tokens))
    clients = [_Client(config, name, message) for name in names]
    for start in range(0, len(clients), 50):  # not all in one moment, as no cluster does
        await asyncio.gather(*(one.channel.start() for one in clients[start : start + 50]))
    draw = np.random.default_rng(len(names))
    work = [asyncio.create_task(one.send(float(draw.random()))) for one in clients]
    work += [asyncio.create_task(one.listen()) for one in clients]
    pipe.send("here")
    while True:
        word, value = await asyncio.to_thread(pipe.recv)
        for task in work:
            if task.done():
                task.result()
        if word == "send":
            for one in clients:
                one.every = value
                one.outbox.seconds.clear()
                one.outbox.done = 0
                one.sending.set()
            pipe.send(time.process_time())
        elif word == "counts":
            pipe.send([one.outbox.done for one in clients])
        elif word == "stop":
            for one in clients:
                one.sending.clear()
            left = await asyncio.gather(*(one.channel.drain(60) for one in clients))
            if any(left):
                raise AssertionError(f"{sum(left)} trajectories were not acknowledged in 60 s")
            pipe.send([second for one in clients for second in one.outbox.seconds])
        elif word == "heard":
            pipe.send([one.heard.get(value) for one in clients])
        else:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await asyncio.gather(*(one.channel.close() for one in clients))
            pipe.send("gone")
            return


class _Fleet:
    """Processes full of clients, told what to do."""

    def __init__(self, config: ProtocolConfig, actors: int, processes: int, tokens: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.actors = actors
        self._pipes: list[Any] = []
        self._processes = []
        names = [f"actor-{number}" for number in range(actors)]
        for number in range(min(processes, actors)):
            here, there = context.Pipe()
            part = names[number::processes]
            one = context.Process(target=_clients, args=(config, part, tokens, there), daemon=True)
            one.start()
            self._processes.append(one)
            self._pipes.append(here)

    def expect(self, what: str, seconds: float = 120.0) -> list[Any]:
        """An answer of each process."""
        end = time.monotonic() + seconds
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"fleet: no answer to '{what}' within {seconds:g} s")
            answers.append(pipe.recv())
        return answers

    def tell(self, word: str, value: Any = None) -> list[Any]:
        """Tell all of them, and wait for their answers."""
        for pipe in self._pipes:
            pipe.send((word, value))
        return self.expect(word)

    def close(self) -> None:
        """End them."""
        for one in self._processes:
            one.kill()
            one.join(5)


def measure(
    actors: int,
    *,
    seconds: float = 10.0,
    pace: float | None = None,
    room: int = 0,
    tokens: int = 256,
    processes: int = 2,
    folder: Path,
) -> FleetResult:
    """One fleet. `pace`: trajectories a second of all actors together in the paced part."""
    keys = folder / "keys"
    if not keys.exists():
        make_keys(keys)
    config = ProtocolConfig(
        endpoint="tcp://127.0.0.1:0", keys=str(keys), credits=16, connect_seconds=120.0
    )
    store = JournaledStore(folder / f"inbox-{actors}", _RUN)
    channel = LearnerChannel(
        config,
        _RUN,
        store=store,
        receipts=store.receipts,
        room=None if room == 0 else lambda serving: room,
    )
    channel.start()
    ended = threading.Event()

    def consume() -> None:
        while not ended.is_set():
            event = channel.receive(0.2)
            if event is not None:
                channel.accept(event)

    consumer = threading.Thread(target=consume, name="consumer")
    consumer.start()
    began = time.monotonic()
    fleet = _Fleet(
        msgspec.structs.replace(config, endpoint=channel.endpoint), actors, processes, tokens
    )
    try:
        fleet.expect("here", 300.0)
        joined = time.monotonic() - began
        counts, elapsed, cpu = _as_fast(fleet, seconds)
        rate = sum(counts) / elapsed
        offered = pace or rate / 2
        fleet.tell("send", actors / offered)
        time.sleep(seconds)
        latencies = np.array([one for part in fleet.tell("stop") for one in part])
        heard = max(_announce(channel, fleet, version) for version in range(1, 1 + _VERSIONS))
        memory = psutil.Process().memory_info().rss / 2**20
        fleet.tell("leave")
    finally:
        fleet.close()
        ended.set()
        consumer.join()
        channel.close()
        store.close()
    return FleetResult(
        actors=actors,
        per_second=rate,
        least=min(counts),
        most=max(counts),
        offered_per_second=offered,
        paced_per_second=len(latencies) / seconds,
        p50_ms=float(np.percentile(latencies, 50)) * 1000,
        p99_ms=float(np.percentile(latencies, 99)) * 1000,
        heard_s=heard,
        joined_s=joined,
        learner_mb=memory,
        learner_cpu_us=cpu / max(1, sum(counts)) * 1e6,
    )


def _as_fast(fleet: _Fleet, seconds: float) -> tuple[list[int], float, float]:
    """(acknowledged by actor, seconds, CPU seconds here), once it runs evenly."""
    fleet.tell("send", 0.0)
    time.sleep(min(2.0, seconds / 2))
    before = [one for part in fleet.tell("counts") for one in part]
    began, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    after = [one for part in fleet.tell("counts") for one in part]
    elapsed, used = time.monotonic() - began, time.process_time() - cpu
    fleet.tell("stop")
    return [b - a for a, b in zip(before, after, strict=True)], elapsed, used


def _announce(channel: LearnerChannel, fleet: _Fleet, version: int) -> float:
    """Seconds until the last actor has heard of a version."""
    began = time.monotonic()
    channel.announce(WeightsReady(WeightManifest(version, "zmq", 0, 0, (), _CANARY)))
    while time.monotonic() - began < 60:
        time.sleep(0.2)
        heard = [one for part in fleet.tell("heard", version) for one in part]
        if all(one is not None for one in heard):
            return max(one for one in heard) - began
    raise AssertionError(f"version {version} had not arrived everywhere after 60 s")


def _rows(one: FleetResult) -> list[tuple[str, str]]:
    return [
        ("trajectories/s, as fast as they can", f"{one.per_second:,.0f}"),
        ("  least, most served", f"{one.least}, {one.most}"),
        ("  learner's CPU per trajectory", f"{one.learner_cpu_us:.0f} µs"),
        ("paced: offered, /s", f"{one.offered_per_second:,.0f}"),
        ("paced: reached, /s", f"{one.paced_per_second:,.0f}"),
        ("  sent to acknowledged, p50", f"{one.p50_ms:.1f} ms"),
        ("  sent to acknowledged, p99", f"{one.p99_ms:.1f} ms"),
        ("a version heard of by all", f"{one.heard_s * 1000:.0f} ms"),
        ("all here after", f"{one.joined_s:.1f} s"),
        ("learner's memory", f"{one.learner_mb:.0f} MiB"),
    ]


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  dynatok bench fleet --actors 1000 --seconds 20",
    )
    parser.add_argument("--actors", type=int, default=1000, help="of the large fleet (1000)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part (15)")
    parser.add_argument("--room", type=int, default=0, help="in flight or waiting in all; 0: any")
    parser.add_argument("--tokens", type=int, default=256, help="of a trajectory (256)")
    parser.add_argument("--processes", type=int, default=2, help="that hold the clients (2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:

        def fleet(actors: int, pace: float | None) -> FleetResult:
            return measure(
                actors,
                seconds=options.seconds,
                pace=pace,
                room=options.room,
                tokens=options.tokens,
                processes=options.processes,
                folder=Path(name),
            )

        few = fleet(min(_FEW, options.actors), None)
        many = fleet(options.actors, few.offered_per_second)
    table = Table(title=f"fleet: trajectories of {options.tokens} tokens, CURVE, journal")
    table.add_column("")
    table.add_column(f"{few.actors} actors", justify="right")
    table.add_column(f"{many.actors} actors", justify="right")
    for row in zip(_rows(few), _rows(many), strict=True):
        table.add_row(row[0][0], row[0][1], row[1][1])
    console = Console(stderr=True)
    console.print(table)
    share = many.per_second / few.per_second
    console.print(f"the large fleet reaches {share:.2f} of the small one (at least 0.8 is asked)")
    print(msgspec.json.encode({"few": few, "many": many, "share": share}).decode())
    return 0
