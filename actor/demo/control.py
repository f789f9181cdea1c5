"""Does what the pages ask, one session at a time.

Every tab shows the same session and may steer it. `news` wakes whoever sends to a page.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

import msgspec

from actor.config import SamplingConfig
from actor.demo.backend import Backend
from actor.demo.comparison import Comparison
from actor.demo.config import DemoConfig
from actor.demo.messages import Edit, Hello, Measure, Pause, Request, Send, Speed, Start, Stop
from actor.demo.pace import Pace
from actor.tokenizer import chat_of
from dynatok_online.policy import parse_policy
from dynatok_online.prompt import Placement
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.tasks.files import Chat
from dynatok_online.trajectory import Trajectory
from dynatok_online.view.events import stale_event


class Refused(ValueError):
    """What a page asked for cannot be done; the message is a line for people."""


class Control:
    """What all pages share: the engine's state, the session, and its speed."""

    def __init__(self, config: DemoConfig, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.session: Comparison | None = None
        self.engine = {"state": "starting", "message": "the engine is starting"}
        self._pace = Pace(config.tokens_per_second)
        self._pacing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._starting = asyncio.Lock()
        self._chats: dict[Placement, Chat] = {}
        self._behind: set[asyncio.Task[None]] = set()
        """What goes on behind an answer: sending, measuring."""

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
            "measures": self.backend.measures,
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
            "choices": msgspec.to_builtins(config.choices),
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
        """Do what a page asks. Raises ValueError that says why not.

        What a page asks is done one after the other; what may take long continues behind this.
        """
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
                self._send(session, request.lane)
            case Measure() if session is not None:
                self._measure(session)
            case _:
                raise Refused("nothing is being written; press Start first")

    async def chat(self, placement: Placement) -> Chat | None:
        """What makes a prompt of a user's message; None where prompts are plain text.

        ValueError for a model without a chat template.
        """
        config = self.config
        if not config.chat:
            return None
        if placement not in self._chats:
            self._chats[placement] = await asyncio.to_thread(
                chat_of,
                config.model,
                placement,
                config.system_prompt,
                config.chat_template_kwargs,
            )
        return self._chats[placement]

    async def close(self) -> None:
        """End the session."""
        if self.session is not None:
            await self.session.cancel()
        for task in (*self._behind, *([] if self._pacing is None else [self._pacing])):
            task.cancel()

    async def _start(self, request: Start) -> None:
        if not self.backend.ready:
            raise Refused("the engine is not ready; it says so above when it is")
        async with self._starting:
            if self.session is not None and self.session.running:
                await self.session.stop()
                await self.session.ended()
            self.session = Comparison(
                f"demo-{secrets.token_hex(4)}",
                request,
                [self.backend.serving(lane) for lane in range(len(request.lanes))],
                self.backend.tokenizer,
                self._sampling(request),
                model=self.config.model,
                chat=await self.chat(request.placement),
                slot_width=self.config.slot_width,
                lost=self.backend.lost,
                changed=self.wake,
            )
            if self.backend.pausable is not None:
                pacing = self._pace.run(self.session, lambda: self.backend.pausable)
                self._pacing = asyncio.create_task(pacing)

    def _send(self, session: Comparison, lane: int) -> None:
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
        if finished is not None and finished.unaudited:
            raise Refused(
                f"this response could not be audited, so nobody trains on it: {finished.unaudited}"
            )
        if lane in session.sent:
            raise Refused("this response has been sent already")
        session.sent.add(lane)
        session.emit({"type": "sending", "lane": lane})

        async def send() -> None:
            try:
                await self.backend.send(trajectory)
            except Exception as error:
                session.sent.discard(lane)
                message = f"not sent: {type(error).__name__}: {error}"
                session.emit({"type": "unsent", "lane": lane, "message": message})
            else:
                session.emit({"type": "sent", "lane": lane})

        self._go_on(send())

    def _measure(self, session: Comparison) -> None:
        if not self.backend.measures:
            raise Refused(
                "beside a training run the weights change; dynatok eval with stale: true measures "
                "what it has published"
            )
        if session.running:
            raise Refused("only finished responses can be measured; press Stop first")
        found = {
            number: trajectory
            for number, lane in enumerate(session.lanes)
            if parse_policy(lane.reuse).keeps and (trajectory := session.trajectory(lane))
        }
        if not any(one.edits for one in found.values()):
            raise Refused(
                "only lanes that keep KV (sticky, refresh) have old KV, and only behind an edit"
            )
        if found.keys() <= session.measured:
            raise Refused("these responses have been measured already")

        async def measure(number: int, trajectory: Trajectory) -> None:
            try:
                stretches = await self.backend.swallowed(trajectory)
            except Exception as error:
                session.measured.discard(number)
                message = f"not measured: {type(error).__name__}: {error}"
                session.emit({"type": "unmeasured", "lane": number, "message": message})
            else:
                session.emit(stale_event(number, stretches))

        for number in found.keys() - session.measured:
            session.measured.add(number)
            session.emit({"type": "measuring", "lane": number})
            self._go_on(measure(number, found[number]))

    def _go_on(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _sampling(self, request: Start) -> SamplingConfig:
        return msgspec.structs.replace(
            self.config.sampling, temperature=request.temperature, max_tokens=request.max_tokens
        )
