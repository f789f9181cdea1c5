"""At the end an actor waits for the last weights, for as long as they are on their way."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from actor.online.actor import Actor


def actor(**more: Any) -> Any:
    return SimpleNamespace(
        _config=SimpleNamespace(finish_timeout=0.2),
        _serving=SimpleNamespace(version=3),
        _updated=asyncio.Event(),
        _weights=SimpleNamespace(updating=False),
        **more,
    )


def test_weights_that_never_come_are_waited_for_so_long() -> None:
    async def scenario() -> float:
        began = time.monotonic()
        await Actor._wait_for_version(cast(Actor, actor()), 4)
        return time.monotonic() - began

    assert 0.2 <= asyncio.run(scenario()) < 5


def test_an_update_that_has_begun_may_take_longer() -> None:
    async def scenario() -> int:
        one = actor()
        one._weights.updating = True

        async def update() -> None:
            await asyncio.sleep(1.0)
            one._serving.version = 4
            one._weights.updating = False
            one._updated.set()

        task = asyncio.create_task(update())
        await Actor._wait_for_version(cast(Actor, one), 4)
        served = int(one._serving.version)
        await task
        return served

    async def within() -> int:
        async with asyncio.timeout(10):
            return await scenario()

    assert asyncio.run(within()) == 4
