"""A page beside a running actor: the socket in the run folder by which `dynatok demo --run` asks.

It costs nothing until someone comes. Then the actor serves the page itself, on loopback, and its
sessions run beside the training ones, under the same weights and the same gate: a weight update
shows as a new pass. When the visitor leaves, the page is taken down.

A visitor sends one line of JSON, `{"config": ..., "token": ...}`, and is answered with one,
`{"address": ...}` or `{"error": ...}`.

Some network file systems have no sockets. The socket is then in a folder of its own on this
machine, and a file of the same name in the run folder holds its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from actor.demo.config import DemoConfig
from actor.log import say
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.adherence.stale import Swallowed
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from actor.demo.control import Control

SUFFIX = ".door"
"""Of the socket's name in the run folder."""
_LIMIT = 256 * 1024
_PATIENCE = 10.0
"""Seconds for a visitor's line."""
_LOOK = 0.25
"""Seconds between two looks at the weight version."""

HandOver = Callable[[Trajectory], Awaitable[None]]
_ComeIn = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


class Visit(msgspec.Struct, forbid_unknown_fields=True):
    """What a visitor wants: a page of these settings, behind this token."""

    config: DemoConfig
    token: str


class Answer(msgspec.Struct):
    """Where the page is, or why there is none."""

    address: str = ""
    error: str = ""


class RunBackend:
    """What the page needs of an actor that collects for a learner."""

    sends = True
    measures = False
    pausable = None
    """The engine belongs to the training sessions: it cannot be slowed down."""

    def __init__(self, serving: Serving, tokenizer: Tokenizer, send: HandOver) -> None:
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

    async def swallowed(self, trajectory: Trajectory) -> list[Swallowed]:
        """The weights that wrote it are not here any more."""
        raise NotImplementedError


@contextlib.asynccontextmanager
async def run_socket(
    folder: Path, name: str, model: str, serving: Serving, tokenizer: Tokenizer, send: HandOver
) -> AsyncIterator[None]:
    """Answer visitors at `folder/NAME.door` while the body runs, if a socket can be made at all."""
    backend = RunBackend(serving, tokenizer, send)
    visits: set[asyncio.Task[None]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):  # the visitor has gone
                await _receive(reader, writer, folder.name, model, backend)
        except Exception as error:
            say(f"the page beside this run has failed ({type(error).__name__}: {error})")
        writer.close()

    def come_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.create_task(visited(reader, writer))
        visits.add(visit)
        visit.add_done_callback(visits.discard)

    async def end_visits() -> None:
        for visit in visits:
            visit.cancel()
        if visits:
            await asyncio.wait(visits)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(end_visits)  # once nobody can come in any more
        try:
            await _listen(folder / f"{name}{SUFFIX}", come_in, stack)
        except OSError as error:
            say(f"no page can be opened beside this run: it can have no socket ({error})")
        yield


async def _listen(path: Path, come_in: _ComeIn, stack: contextlib.AsyncExitStack) -> None:
    """A socket at `path`, or one to which a file there leads; `stack` removes what was made."""
    path.unlink(missing_ok=True)
    stack.callback(path.unlink, missing_ok=True)
    try:
        stack.callback((await _bind(path, come_in)).close)
    except OSError:
        elsewhere = stack.enter_context(tempfile.TemporaryDirectory(prefix="dynatok-"))
        there = Path(elsewhere) / path.name
        stack.callback((await _bind(there, come_in)).close)
        path.write_text(f"{there}\n")


async def _bind(path: Path, come_in: _ComeIn) -> asyncio.Server:
    with short(path) as address:
        before = os.umask(0o177)  # nobody else may come in
        try:
            return await asyncio.start_unix_server(come_in, address, limit=_LIMIT)
        finally:
            os.umask(before)


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the actor behind a `.door`. Raises OSError where none answers."""
    if path.is_file():
        path = Path(path.read_text().strip())
    with short(path) as address:
        return await asyncio.open_unix_connection(address)


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
        async with asyncio.timeout(_PATIENCE):
            visit = msgspec.json.decode(await reader.readline(), type=Visit)
        from actor.demo.control import Control
        from actor.demo.server import PageServer

        control = Control(msgspec.structs.replace(visit.config, model=model), backend)
        await control.chat(visit.config.placement)
        server = PageServer(control, visit.config.port, visit.token)
    except (ValueError, ImportError, OSError) as error:
        await answer(Answer(error=f"{error}" or "you said nothing"))
        return
    control.engine_is("ready", f"beside the run {run}")
    serving = asyncio.create_task(server.run())
    others = [asyncio.create_task(_follow(control, backend)), asyncio.create_task(reader.read())]
    try:
        await answer(Answer(address=server.address))
        # Until the visitor leaves, or one of these fails.
        await asyncio.wait({serving, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, *others):
            if task.done():
                task.result()
    finally:
        writer.close()
        server.stop()
        await control.close()
        for task in others:
            task.cancel()
        await asyncio.wait({serving, *others}, timeout=3)


async def _follow(control: Control, backend: RunBackend) -> None:
    """Tell the pages when other weights serve."""
    version = backend.version
    while True:
        await asyncio.sleep(_LOOK)
        if version != (version := backend.version):
            control.wake()
