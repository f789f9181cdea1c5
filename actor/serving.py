"""The gate between sessions and the engine: which weights serve now, and who is generating.

A pass runs under one weight version and one cache salt. The salt changes with every version and
every attempt to load one, so no pass ever takes KV that other weights computed. Closing the gate
aborts the passes under way (their sessions keep the tokens) and holds new ones back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from actor.config import SamplingConfig
from actor.generation import Engine, Generated, OnTokens, Request


class Interrupt:
    """Ends one pass from outside; the first reason counts."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._request: Request | None = None

    async def now(self, reason: str) -> None:
        """End the pass, also one that is just being submitted."""
        if self.reason is None:
            self.reason = reason
            if self._request is not None:
                await self._request.abort()

    async def attach(self, request: Request) -> None:
        """The pass has its request."""
        self._request = request
        if self.reason is not None:
            await request.abort()


@dataclass(frozen=True, slots=True)
class Served:
    """What a pass gave, and under which weights it ran."""

    generated: Generated
    version: int
    cache_salt: str


class Serving:
    """An engine behind a gate. It is closed until `open` is called for the first time."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self.engine = engine
        self.version = -1
        """Weight version that serves; -1: none yet."""
        self.cache_salt = ""
        self._run_id = run_id
        self._salts = 0
        self._opened = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._passes: set[Interrupt] = set()
        self._requests = 0

    def new_salt(self, version: int) -> str:
        """A cache salt that was never used before."""
        self._salts += 1
        return f"{self._run_id}/{version}/{self._salts}"

    @property
    def is_open(self) -> bool:
        """Whether passes may start."""
        return self._opened.is_set()

    def open(self, version: int, cache_salt: str) -> None:
        """Let passes start, under these weights."""
        self.version, self.cache_salt = version, cache_salt
        self._opened.set()

    async def close(self) -> int:
        """Hold passes back, abort those under way, wait for their end; returns how many."""
        self._opened.clear()
        passes = list(self._passes)
        await asyncio.gather(*(one.now("weights") for one in passes))
        await self._idle.wait()
        return len(passes)

    async def ready(self) -> None:
        """Wait until passes may start."""
        while not self._opened.is_set():
            await self._opened.wait()

    async def run(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig,
        max_tokens: int,
        seed: int | None,
        interrupt: Interrupt,
        on_tokens: OnTokens | None = None,
    ) -> Served:
        """One pass, from submission to its end. The gate must be open: call `ready` first.

        There must be no `await` between `ready` and this call, so that what is fed is what the
        session knows at the moment of submission.
        """
        assert self._opened.is_set(), "a pass was started while the gate was closed"
        version, salt = self.version, self.cache_salt
        self._requests += 1
        self._passes.add(interrupt)
        self._idle.clear()
        try:
            request = await self.engine.submit(
                token_ids,
                request_id=f"pass-{self._requests}",
                sampling=sampling,
                max_tokens=max_tokens,
                seed=seed,
                cache_salt=salt,
                stream=on_tokens is not None,
            )
            await interrupt.attach(request)
            return Served(await request.wait(on_tokens), version, salt)
        finally:
            self._passes.discard(interrupt)
            if not self._passes:
                self._idle.set()
