"""A browser, the real `dynatok demo`, and the same page on the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from actor.demo.server import PageServer, Server
from tests.actor.demo.backend import CONFIG, FakeBackend, SlowEngine, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP node7 127.0.0.1"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install -y chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=ARGUMENTS,
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: `DYNATOK_SHOTS`, or the tests' folder."""
    folder = Path(os.environ.get("DYNATOK_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens an address in a context of its own; an error in the page's script fails the test."""
    contexts: list[Any] = []
    errors: list[str] = []

    def opener(address: str, **settings: Any) -> Page:
        settings.setdefault("viewport", {"width": 1400, "height": 950})
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
        page.goto(address)
        return page

    yield opener
    for context in contexts:
        context.close()
    assert errors == []


@dataclass
class Demo:
    """A running `dynatok demo`."""

    process: subprocess.Popen[str]
    address: str
    log: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Demo]:
    """The real thing on the tiny model; the page is there before the engine is."""
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("demo") / "log"
    command = [sys.executable, "-m", "launch.cli", "demo", "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found, log.read_text()
    yield Demo(process, found[0], log)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(15) == 0, log.read_text()
    finally:
        process.kill()


@dataclass
class FakeDemo:
    """The page on the fake engine, in a thread."""

    backend: FakeBackend
    loop: asyncio.AbstractEventLoop
    address: str
    proxied: str
    """Its address behind a proxy that puts a path before it."""
    rewritten_host: str = ""
    """The name by which that proxy asks, if not the browser's."""

    def do(self, what: Callable[[], Any]) -> None:
        """In the server's thread."""
        self.loop.call_soon_threadsafe(what)


@contextlib.asynccontextmanager
async def proxy(server: PageServer, host: Callable[[], str]) -> AsyncIterator[str]:
    """Serves the page under a path, as JupyterHub and Open OnDemand do."""

    async def rewritten(scope: Any, receive: Any, send: Any) -> None:
        if name := host():
            others = [(key, value) for key, value in scope["headers"] if key != b"host"]
            scope = {**scope, "headers": [*others, (b"host", name.encode())]}
        await server.app(scope, receive, send)

    path = f"/user/anna/proxy/{server.port}"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            Starlette(routes=[Mount(path, app=rewritten)]), log_level="warning", lifespan="off"
        )
        outer = Server(config)
        running = asyncio.create_task(outer.serve(sockets=[listening]))
        port = listening.getsockname()[1]
        yield f"http://127.0.0.1:{port}{path}/?{server.address.partition('?')[2]}"
        outer.should_exit = outer.force_exit = True
        await asyncio.wait({running}, timeout=5)


@pytest.fixture
def fake_demo(request: pytest.FixtureRequest) -> Iterator[FakeDemo]:
    """See `FakeDemo`; a test may set the engine's `story` and speed before it starts.

    A test may give other settings than `CONFIG` as the fixture's parameter.
    """
    config = getattr(request, "param", CONFIG)
    ready = threading.Event()
    stop: list[Callable[[], Any]] = []
    found: list[FakeDemo] = []

    async def serve() -> None:
        backend = FakeBackend(SlowEngine(step=0.002))
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(done.set))
        async with (
            served(config, backend) as (_, server),
            proxy(server, lambda: found[0].rewritten_host) as proxied,
        ):
            found.append(FakeDemo(backend, loop, server.address, proxied))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        stop[0]()
        thread.join(10)


def wait_until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return value
