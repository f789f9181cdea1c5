"""The way from `dynatok demo --run` into a running actor: a socket in the run folder.

It costs nothing until someone comes. Then the actor serves the page itself, on loopback, and its
sessions run beside the training ones, under the same weights and the same gate: a weight update
shows as a new pass. When the visitor leaves, the page is taken down.

A visitor sends one line of JSON, `{"config": ..., "token": ...}`, and is answered with one,
`{"address": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from actor.demo.config import DemoConfig
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from actor.demo.hub import Hub

SUFFIX = ".door"
_LIMIT = 256 * 1024
_LOOK = 0.25
"""Seconds between two looks at the weight version."""

Send = Callable[[Trajectory], Awaitable[None]]


class Visit(msgspec.Struct, forbid_unknown_fields=True):
    """What a visitor wants: a page of these settings, behind this token."""

    config: DemoConfig
    token: str


class Answer(msgspec.Struct):
    """Where the page is, or why there is none."""

    address: str = ""
    error: str = ""


class RunBackend:
    """What a hub needs of an actor that collects for a learner."""

    sends = True
    pausable = None
    """The engine belongs to the training sessions: nobody may hold it."""

    def __init__(self, serving: Serving, tokenizer: Tokenizer, send: Send) -> None:
        self.tokenizer = tokenizer
        self._serving = serving
        self._send = send

    @property
    def ready(self) -> bool:
        """Whether passes may start."""
        return self._serving.version >= 0

    @property
    def version(self) -> int:
        """Weight version that serves."""
        return self._serving.version

    def serving(self, lane: int) -> Serving:
        """Every lane runs behind the gate of the training sessions."""
        return self._serving

    async def lost(self, error: Exception) -> bool:
        """An engine that dies ends the actor, which its supervisor starts again."""
        return False

    async def send(self, trajectory: Trajectory) -> None:
        """Hand a trajectory to the learner."""
        await self._send(trajectory)


@contextlib.asynccontextmanager
async def door(
    folder: Path, name: str, model: str, serving: Serving, tokenizer: Tokenizer, send: Send
) -> AsyncIterator[None]:
    """Keep a door open at `folder/NAME.door` while the body runs."""
    backend = RunBackend(serving, tokenizer, send)
    visits: set[asyncio.Task[None]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the visitor has gone
            await _receive(reader, writer, folder.name, model, backend)
        writer.close()

    def come_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.create_task(visited(reader, writer))
        visits.add(visit)
        visit.add_done_callback(visits.discard)

    path = folder / f"{name}{SUFFIX}"
    path.unlink(missing_ok=True)
    with short(path) as address:
        before = os.umask(0o177)  # nobody else may come in
        try:
            server = await asyncio.start_unix_server(come_in, address, limit=_LIMIT)
        finally:
            os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
        for visit in visits:
            visit.cancel()
        if visits:
            await asyncio.wait(visits)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """The same path in few characters: the name of a socket may have no more than about 100."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


async def _receive(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    run: str,
    model: str,
    backend: RunBackend,
) -> None:
    async def answer(what: Answer) -> None:
        writer.write(msgspec.json.encode(what) + b"\n")
        await writer.drain()

    try:
        visit = msgspec.json.decode(await reader.readline(), type=Visit)
        from actor.demo.hub import Hub
        from actor.demo.server import PageServer

        hub = Hub(msgspec.structs.replace(visit.config, model=model), backend)
        server = PageServer(hub, visit.config.port, visit.token)
    except (ValueError, ImportError, OSError) as error:
        await answer(Answer(error=f"{error}"))
        return
    hub.engine_is("ready", f"beside the run {run}")
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(_follow(hub, backend))]
    try:
        await answer(Answer(address=server.address))
        await reader.read()  # until the visitor leaves
    finally:
        writer.close()
        server.stop()
        await hub.close()
        tasks[1].cancel()
        await asyncio.wait(tasks, timeout=3)


async def _follow(hub: Hub, backend: RunBackend) -> None:
    """Tell the pages when other weights serve."""
    version = backend.version
    while True:
        await asyncio.sleep(_LOOK)
        if version != (version := backend.version):
            hub.wake()
