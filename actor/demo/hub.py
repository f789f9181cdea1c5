"""What the pages share: one engine, one session at a time, and its log.

Every tab shows the same session and may steer it. `wait` wakes whoever sends to a page.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Protocol

import msgspec

from actor.config import SamplingConfig
from actor.demo.config import DemoConfig
from actor.demo.messages import Edit, Hello, Pause, Request, Send, Speed, Start, Stop
from actor.demo.pace import Pace, Pausable
from actor.demo.session import DemoSession
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.trajectory import Trajectory


class Backend(Protocol):
    """Who generates for the page."""

    sends: bool
    """Whether there is a learner to send trajectories to."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        ...

    @property
    def ready(self) -> bool:
        """Whether passes may start."""
        ...

    @property
    def version(self) -> int:
        """Weight version that serves; -1: none yet."""
        ...

    @property
    def pausable(self) -> Pausable | None:
        """The engine, where nobody else uses it: it can be slowed down."""
        ...

    def serving(self, lane: int) -> Serving:
        """Where the session of a lane runs."""
        ...

    async def lost(self, error: Exception) -> bool:
        """A pass failed with `error`: whether that is because the engine died."""
        ...

    async def send(self, trajectory: Trajectory) -> None:
        """Hand a trajectory to the learner of a training run."""
        ...


class Refused(ValueError):
    """What a page asked for cannot be done; the message is a line for people."""


class Hub:
    """The state behind every page."""

    def __init__(self, config: DemoConfig, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.session: DemoSession | None = None
        self.engine = {"state": "starting", "message": "the engine is starting"}
        self._pace = Pace(config.tokens_per_second)
        self._pacing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._starting = asyncio.Lock()

    def status(self) -> dict[str, Any]:
        """What every page shows besides the session."""
        return {
            "type": "status",
            **self.engine,
            "model": self.config.model,
            "version": self.backend.version,
            "speed": self._pace.tokens_per_second,
            "paced": self.backend.pausable is not None,
            "sends": self.backend.sends,
        }

    def welcome(self) -> dict[str, Any]:
        """What a page needs once: the settings to begin with, and the known requirements."""
        config = self.config
        return {
            "type": "welcome",
            "defaults": {
                "template": config.template,
                "slots": msgspec.to_builtins(config.slots),
                "lanes": list(config.lanes),
                "placement": config.placement,
                "temperature": config.sampling.temperature,
                "seed": config.seed,
                "max_tokens": config.max_tokens,
            },
            "requirements": [
                {"name": one.name, "family": one.family, "text": one.text}
                for one in REQUIREMENTS.values()
            ],
        }

    def engine_is(self, state: str, message: str) -> None:
        """The engine's state has changed."""
        self.engine = {"state": state, "message": message}
        self.wake()

    def wake(self) -> None:
        """There is something to send to the pages."""
        self._news.set()
        self._news = asyncio.Event()

    @property
    def news(self) -> asyncio.Event:
        """Set at the next change."""
        return self._news

    async def handle(self, request: Request) -> None:
        """Do what a page asks. Raises ValueError that says why not."""
        session = self.session
        match request:
            case Hello():
                pass
            case Start():
                await self._start(request)
            case Edit() if session is not None:
                await session.edit(request.slots, request.key)
            case Pause() if session is not None:
                await session.pause(request.paused)
            case Stop() if session is not None:
                await session.stop()
            case Speed():
                self._pace.tokens_per_second = request.tokens_per_second
                self.wake()
            case Send() if session is not None:
                await self._send(session, request.lane)
            case _:
                raise Refused("nothing is being written; press Start first")

    async def close(self) -> None:
        """End the session."""
        if self.session is not None:
            await self.session.cancel()
        if self._pacing is not None:
            self._pacing.cancel()

    async def _start(self, request: Start) -> None:
        if not self.backend.ready:
            raise Refused("the engine is not ready; it says so above when it is")
        async with self._starting:
            if self.session is not None and self.session.running:
                await self.session.stop()
            self.session = DemoSession(
                f"demo-{secrets.token_hex(4)}",
                request,
                [self.backend.serving(lane) for lane in range(len(request.lanes))],
                self.backend.tokenizer,
                self._sampling(request),
                model=self.config.model,
                slot_width=self.config.slot_width,
                lost=self.backend.lost,
                changed=self.wake,
            )
            if self.backend.pausable is not None:
                pacing = self._pace.run(self.session, self.backend.pausable)
                self._pacing = asyncio.create_task(pacing)

    async def _send(self, session: DemoSession, lane: int) -> None:
        if not self.backend.sends:
            raise Refused("there is no learner; start with --run RUN_DIR beside a training run")
        if lane >= len(session.lanes):
            raise Refused(f"there is no lane {lane}")
        trajectory = session.trajectory(session.lanes[lane])
        if trajectory is None or trajectory.response.size == 0:
            raise Refused("only a finished response can be sent; press Stop first")
        finished = session.lanes[lane].finished
        if finished is not None and finished.problems:
            raise Refused(
                "the engine contradicts itself, so this response cannot be trained on: "
                f"{finished.problems[0]}"
            )
        await self.backend.send(trajectory)
        session.emit({"type": "sent", "lane": lane})

    def _sampling(self, request: Start) -> SamplingConfig:
        return msgspec.structs.replace(
            self.config.sampling, temperature=request.temperature, max_tokens=request.max_tokens
        )
