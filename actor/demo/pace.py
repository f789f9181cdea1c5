"""Holds the engine back, so that a person can follow: so many tokens per second.

The engine's scheduler is paused between tokens; requests keep their place, so a pass stays one
pass and the first token under a new state comes as fast as the engine can give it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from actor.demo.comparison import Comparison

DEADLINE = 10.0
"""Seconds for an engine to pause or to resume; one that has died may never answer."""


class Pausable(Protocol):
    """An engine that can be held."""

    async def pause(self) -> None:
        """Stop scheduling; requests in flight keep their place."""
        ...

    async def resume(self) -> None:
        """Schedule again."""
        ...


class Pace:
    """`run` it as a task for each session."""

    def __init__(self, tokens_per_second: float) -> None:
        self.tokens_per_second = tokens_per_second
        """0: as fast as the engine can."""

    async def run(self, session: Comparison, engine: Callable[[], Pausable | None]) -> None:
        """Pace a session to its end; leaves the engine running.

        `engine` is asked each time: one that died may have been started again meanwhile.
        """
        allowed, at, seen = 0.0, time.monotonic(), session.written
        paused: Pausable | None = None
        pausing: asyncio.Task[None] | None = None
        try:
            while session.running:
                now, written, rate = time.monotonic(), session.written, self.tokens_per_second
                # What was not written in time is not made up for in a burst.
                allowed = min(allowed + rate * (now - at) - (written - seen), 1.0)
                at, seen = now, written
                pause = rate > 0 and allowed < 0 and not session.token_due
                if pause and paused is None and (paused := engine()) is not None:
                    # vLLM's pause waits a while after it holds: nothing may wait for that.
                    pausing = asyncio.create_task(_alive_or_not(paused.pause()))
                elif paused is not None and not pause:
                    await _alive_or_not(paused.resume())
                    paused = None
                wait = -allowed / rate if pause else 0.25
                await session.moved(max(wait, 0.002))
        finally:
            if pausing is not None:
                await asyncio.wait({pausing})
            if paused is not None:
                await _alive_or_not(paused.resume())


async def _alive_or_not(call: Awaitable[None]) -> None:
    """A dead engine cannot be paused; that it is dead is told by whoever generates."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(DEADLINE):
            await call
