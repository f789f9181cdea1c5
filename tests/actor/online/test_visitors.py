"""What a visitor sends reaches the learner, or the visitor hears why not; the actor goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from actor.online.visitors import HandOver, receive
from dynatok_online.trajectory import Trajectory
from tests.test_trajectory import worked_example

ONE = worked_example()


def visited(visit, send):
    """Lets `visit(send)` in; what it did, once the actor has ended."""

    @contextlib.asynccontextmanager
    async def visits(send_on: HandOver) -> AsyncIterator[None]:
        visiting = asyncio.create_task(visit(send_on))
        yield
        await visiting

    async def life() -> None:
        receiving = asyncio.create_task(receive(visits, send))
        await asyncio.sleep(0.05)
        assert not receiving.done(), "a visitor ended the actor"
        receiving.cancel()
        await asyncio.wait({receiving}, timeout=5)

    asyncio.run(life())


def test_what_cannot_be_sent_is_the_visitors_error_alone():
    heard: list[str] = []

    async def send(trajectory: Trajectory) -> None:
        raise ValueError("too long for a message")

    async def visit(send_on: HandOver) -> None:
        with pytest.raises(ValueError, match="too long") as error:
            await send_on(ONE)
        heard.append(str(error.value))

    visited(visit, send)
    assert heard == ["too long for a message"]


def test_what_was_sent_arrives_although_the_visitor_left():
    arrived: list[Trajectory] = []

    async def send(trajectory: Trajectory) -> None:
        await asyncio.sleep(0.01)  # until the learner has room
        arrived.append(trajectory)

    async def visit(send_on: HandOver) -> None:
        sending = asyncio.ensure_future(send_on(ONE))
        await asyncio.sleep(0)
        sending.cancel()

    visited(visit, send)
    assert arrived == [ONE]
