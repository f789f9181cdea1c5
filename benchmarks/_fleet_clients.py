"""The clients of `dynatok bench fleet`: actors of the protocol without engines, many to a process.

The actors of a process share its two threads of zmq; each has its own socket, keys and outbox.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

from benchmarks.wire import sample
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.delivery import Outbox
from protocol.wire.messages import Hello, TrajectoryMessage, WeightsReady
from protocol.wire.socket import new_epoch

RUN = "bench-fleet"


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

    def __init__(
        self,
        config: ProtocolConfig,
        name: str,
        message: TrajectoryMessage,
        context: zmq.Context[Any],
    ) -> None:
        self.outbox = _Timed()
        hello = Hello("none", 32, 0)
        self.channel = ActorChannel(config, RUN, name, hello, outbox=self.outbox, context=context)
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
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * len(names) + 64)
    clients = [_Client(config, name, message, context) for name in names]
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
            pipe.send(None)
        elif word == "counts":
            pipe.send(([one.outbox.done for one in clients], time.process_time()))
        elif word == "stop":
            for one in clients:
                one.sending.clear()
            left = await asyncio.gather(*(one.channel.drain(110) for one in clients))
            if any(left):
                raise AssertionError(f"{sum(left)} trajectories were not acknowledged in 110 s")
            pipe.send([second for one in clients for second in one.outbox.seconds])
        elif word == "heard":
            pipe.send([one.heard.get(value) for one in clients])
        else:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await asyncio.gather(*(one.channel.close() for one in clients))
            await asyncio.to_thread(context.term)
            pipe.send("gone")
            return


class Fleet:
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
