"""Visitors beside the collecting sessions: whoever opens a page on a running actor.

The actor itself knows no page. `actor.main` gives it one (`actor.demo.run_socket`), if there is to
be one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.trajectory import Trajectory

HandOver = Callable[[Trajectory], Awaitable[None]]
Visits = Callable[[Path, str, str, Serving, Tokenizer, HandOver], AbstractAsyncContextManager[None]]
"""Lets people in while its body runs: run folder, the actor's name, its model, its engine behind
the gate, its tokenizer, and where finished trajectories go."""


async def receive(
    visits: Callable[[HandOver], AbstractAsyncContextManager[None]], send: HandOver
) -> None:
    """Let visitors in until cancelled. What one sends is sent even if they leave.

    Why it could not be sent is theirs to know; the actor goes on.
    """
    sending: set[asyncio.Task[None]] = set()

    async def send_on(trajectory: Trajectory) -> None:
        task = asyncio.ensure_future(send(trajectory))
        sending.add(task)
        task.add_done_callback(sending.discard)
        await asyncio.shield(task)

    try:
        async with visits(send_on):
            await asyncio.Future()
    finally:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
