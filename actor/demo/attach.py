"""`dynatok demo --run RUN_DIR`: the page of an actor that is running."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from pathlib import Path

import msgspec

from actor.demo.config import DemoConfig
from actor.demo.run_socket import SUFFIX, Answer, Visit, connect

PATIENCE = 120.0
"""Seconds to wait for an actor: its engine may be starting, or it is being started again."""


def attach(config: DemoConfig, run_dir: Path) -> int:
    """Keep the page open until Ctrl-C or the end of the run; the exit code."""
    from actor.demo.main import say

    if not (run_dir / "actor.yaml").is_file():
        say(f"{run_dir} is no run folder: it has no actor.yaml")
        return 2
    try:
        return asyncio.run(_attach(config, run_dir))
    except KeyboardInterrupt:
        return 0


async def _attach(config: DemoConfig, run_dir: Path) -> int:
    from actor.demo.main import say

    visit = Visit(config, secrets.token_urlsafe(24))
    address = ""
    while True:
        connection = await _connect(run_dir)
        if connection is None:
            say(f"no actor of {run_dir} answers; is the run still running?")
            return 0 if address else 1
        reader, writer = connection
        answer = await _ask(visit, reader, writer)
        if answer.error:
            say(answer.error)
            return 2
        if answer.address and answer.address != address:
            address = answer.address
            # Whatever actor comes next, the page stays where it is.
            visit.config = msgspec.structs.replace(
                config, port=int(address.split(":")[2].split("/")[0])
            )
            print(f"dynatok: the page is at {address}", flush=True)
            say("Ctrl-C closes it; the run continues")
        with contextlib.suppress(OSError):
            await reader.read()  # until the actor ends
        writer.close()
        say("the actor has ended; waiting until it is started again")


async def _ask(visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
    """What the actor answers; nothing, where it has ended meanwhile."""
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(msgspec.json.encode(visit) + b"\n")
            return msgspec.json.decode(await reader.readline() or b"{}", type=Answer)
    except TimeoutError:
        return Answer(error=f"the actor has not answered for {PATIENCE:.0f} s")
    except OSError:
        return Answer()


async def _connect(
    run_dir: Path,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """The first actor of the run that answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in sorted(run_dir.glob(f"*{SUFFIX}")):
            try:
                return await connect(path)
            except OSError:
                continue
        if (run_dir / "result.json").exists():
            return None
        await asyncio.sleep(0.5)
    return None
