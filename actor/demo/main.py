"""`dynatok demo`: the page and its engine in one process."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import traceback

from actor.demo.config import DemoConfig
from actor.demo.control import Control
from actor.demo.own_engine import OwnEngine
from actor.demo.server import PageServer
from actor.tokenizer import load_tokenizer
from dynatok_online import tiny


def run(config: DemoConfig) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code of the process."""
    try:
        code = asyncio.run(_run(config))
    except (ValueError, OSError) as error:
        say(f"{error}")
        code = 2
    except Exception:
        traceback.print_exc()
        code = 1
    # An engine that is just starting cannot be told to stop: leave nothing behind, and go.
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    os._exit(code)


def say(text: str) -> None:
    """A line for people."""
    print(f"dynatok: {text}", file=sys.stderr, flush=True)


async def _run(config: DemoConfig) -> int:
    model = tiny.resolve(config.model)
    # Warnings about every default that suits us are nothing for people to read.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    own = OwnEngine(config, model, f"demo-{os.getpid()}", load_tokenizer(model))
    control = Control(config, own)
    await control.chat(config.placement)  # what is wrong with it is said now

    def tell(state: str, line: str) -> None:
        say(line)
        control.engine_is(state, line)

    own.say = tell
    own.busy = lambda: control.session is not None and control.session.running
    server = PageServer(control, config.port)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"dynatok: the page is at {server.address}", flush=True)
    say("Ctrl-C stops")
    keeping = asyncio.create_task(own.run())
    serving = asyncio.create_task(server.run())
    stop = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({keeping, serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (keeping, serving):
            if task.done():
                task.result()
        return 0
    finally:
        server.stop()
        keeping.cancel()
        await control.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(own.close(), 5)
        await asyncio.wait({serving}, timeout=3)
