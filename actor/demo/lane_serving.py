"""The gate between one lane's session and the engine: pauses it, stops it, watches its passes.

It has the interface of `Serving` that a `LiveSession` uses. A pause ends the pass in flight, as an
edit does; the next one continues from there. An engine that dies takes only its pass with it: the
session waits at the gate and samples that pass again, with the same seed, from the engine that
takes the dead one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from actor.sessions.generation import Generated
from actor.sessions.serving import Interrupt, Served, Serving

Lost = Callable[[Exception], Awaitable[bool]]
"""Told that a pass failed; answers whether the engine died (else the pass itself was wrong)."""


class Listener(Protocol):
    """Sees the passes of a lane as they happen."""

    def pass_begins(self, fed: Sequence[int], version: int) -> None:
        """A pass is about to be submitted."""
        ...

    def pass_ends(self, served: Served) -> None:
        """A pass has ended; its session has not recorded it yet."""
        ...

    def pass_lost(self) -> None:
        """The engine died: whatever the pass streamed is sampled again."""
        ...


class LaneServing:
    """Stands before `serving`; closed while paused."""

    def __init__(self, serving: Serving, listener: Listener, lost: Lost) -> None:
        self._serving = serving
        self._listener = listener
        self._lost = lost
        self._going = asyncio.Event()
        self._going.set()
        self._stopping = False
        self._in_flight: Interrupt | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._serving, name)

    async def pause(self) -> None:
        """End the pass in flight; the next one waits for `resume`."""
        self._going.clear()
        if self._in_flight is not None:
            await self._in_flight.now("pause")

    def resume(self) -> None:
        """Resume the session."""
        self._going.set()

    async def stop(self) -> None:
        """End the response here."""
        self._stopping = True
        self._going.set()
        if self._in_flight is not None:
            await self._in_flight.now("stop")

    async def ready(self) -> None:
        """Wait until a pass may start."""
        while not (self._going.is_set() and self._serving.is_open):
            await self._going.wait()
            await self._serving.ready()

    async def run(
        self, token_ids: Sequence[int], *, interrupt: Interrupt, **settings: Any
    ) -> Served:
        """One pass; see `Serving.run`."""
        version, salt = self._serving.version, self._serving.cache_salt
        self._in_flight = interrupt
        if self._stopping:
            interrupt.reason = "stop"  # nobody waits for it: it ends before its first token
        self._listener.pass_begins(token_ids, version)
        try:
            served = await self._serving.run(token_ids, interrupt=interrupt, **settings)
        except Exception as error:
            if not await self._lost(error):
                raise
            interrupt.reason = "stop" if self._stopping else "engine"
            self._listener.pass_lost()
            return Served(Generated([], [], 0, "abort", ()), version, salt)
        finally:
            self._in_flight = None
        self._listener.pass_ends(served)
        return served
