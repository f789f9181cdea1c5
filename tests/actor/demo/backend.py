"""A backend without vLLM: the fake engine, one token every few milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

from actor.demo.config import MOST_LANES, DemoConfig
from actor.demo.control import Control
from actor.demo.pace import Pausable
from actor.demo.server import PageServer
from actor.sessions.generation import Generated, OnStart, OnTokens
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.adherence.stale import Swallowed
from dynatok_online.prompt import Encoder
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Trajectory
from tests.actor.fake import FakeEngine, FakeRequest

CONFIG = DemoConfig(
    template="A travel note by Anna. Rules:\nletters: {{case}}\nwords: {{words}}\nText:\n",
    slots={"case": SlotState("lower case", "lower"), "words": SlotState("the sea", "sea")},
    slot_width=12,
    tokens_per_second=0,
)
CONTROL = 0xE000
"""The token `<|end|>`; every other is a character."""
STORY = "We saw 3 boats in the harbour, and two sailors sang on deck. The tide was low. "


class SlowRequest(FakeRequest):
    """Waits between two looks, as a real engine lets its clients wait."""

    engine: SlowEngine

    async def wait(
        self, on_tokens: OnTokens | None = None, on_start: OnStart | None = None
    ) -> Generated:
        seen = 0
        while not self.finish or seen < len(self.token_ids):
            if self.engine.failure is not None:
                self.task.cancel()
                raise self.engine.failure
            if self.task.done() and not self.task.cancelled():
                self.task.result()
            if on_tokens is not None and len(self.token_ids) > seen:
                if not seen and on_start is not None:
                    on_start(self.cached)
                new, seen = self.token_ids[seen:], len(self.token_ids)
                on_tokens(new)
            elif on_tokens is None and self.finish:
                break
            else:
                await asyncio.sleep(0.001)
        n = len(self.token_ids)
        labels = tuple((label, len(list(run))) for label, run in groupby(self.labels))
        return Generated(
            list(self.token_ids), [-0.5] * n, self.cached if n else 0, self.finish, labels
        )


class SlowEngine(FakeEngine):
    """Writes a story, in upper case where the prompt says UPPER."""

    def __init__(self, *, step: float = 0.003, max_model_len: int = 100_000) -> None:
        super().__init__(max_model_len)
        self.seconds = step
        self.story = STORY
        self.failure: Exception | None = None
        self.going = asyncio.Event()
        self.going.set()
        self.next_token = self._next

    def _next(self, whole: list[int]) -> int:
        text = self.story[len(whole) % len(self.story)]
        upper = "UPPER" in "".join(map(chr, whole[:120]))
        return ord(text.upper() if upper else text.lower())

    async def step(self, request: FakeRequest) -> None:
        self.on_step(request)
        await asyncio.sleep(self.seconds)
        await self.going.wait()

    async def submit(self, token_ids: Sequence[int], **settings: Any) -> SlowRequest:
        if self.failure is not None:
            raise self.failure
        request = SlowRequest(
            self, list(map(int, token_ids)), settings["max_tokens"], settings["cache"], False
        )
        self.requests.append(request)
        return request

    async def pause(self) -> None:
        if self.failure is not None:
            raise self.failure
        await super().pause()
        self.going.clear()

    async def resume(self) -> None:
        if self.failure is not None:
            raise self.failure
        await super().resume()
        self.going.set()


class FakeBackend:
    """What a control needs."""

    def __init__(self, engine: SlowEngine) -> None:
        self.engine = engine
        self.version = 0
        self.servings = [Serving(engine, f"run-{lane}") for lane in range(MOST_LANES)]
        for one in self.servings:
            one.open(0, one.new_salt(0))
        self.tokenizer = Tokenizer(
            Encoder(lambda text: [ord(c) for c in text], control={"<|end|>": CONTROL}),
            lambda ids: "".join(chr(i) for i in ids if i != CONTROL),
        )
        self.pausable: Pausable | None = engine
        self.sends = True
        self.measures = True
        self.sent: list[Trajectory] = []

    @property
    def ready(self) -> bool:
        return self.servings[0].is_open

    def serving(self, lane: int) -> Serving:
        return self.servings[lane]

    async def lost(self, error: Exception) -> bool:
        if error is not self.engine.failure:
            return False
        await asyncio.gather(*(one.close() for one in self.servings if one.is_open))
        return True

    async def send(self, trajectory: Trajectory) -> None:
        self.sent.append(trajectory)

    async def swallowed(self, trajectory: Trajectory) -> list[Swallowed]:
        """A quarter of the first edit, and of the others too little to say."""
        return [
            Swallowed(one.start, one.stop, 3.0, 4.0)
            if k == 1
            else Swallowed(one.start, one.stop, 0.1, 0.2)
            for k, one in enumerate(trajectory.passes)
            if k
        ]


@contextlib.asynccontextmanager
async def served(
    config: DemoConfig, backend: FakeBackend
) -> AsyncIterator[tuple[Control, PageServer]]:
    """What the pages share, and its running server."""
    control = Control(config, backend)
    control.engine_is("ready", "engine ready")
    server = PageServer(control, 0)
    running = asyncio.create_task(server.run())
    try:
        yield control, server
    finally:
        server.stop()
        await control.close()
        await asyncio.wait({running}, timeout=5)
