"""One lane of a session: a live session under one reuse policy, told as events.

What is told comes from the live session itself: its tokens as they stream, and its trajectory so
far whenever a pass has its first token or has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from actor.config import ReusePolicy, SamplingConfig
from actor.demo.lane_serving import LaneServing, Lost
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Served, Serving
from actor.tokenizer import Tokenizer
from dynatok_online.prompt import Placement
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.trajectory import Trajectory
from dynatok_online.view.events import Emit, LaneEvents

FLUSH = 0.015
"""Seconds over which tokens are gathered into one event."""
JUDGE = 0.2
"""Seconds between two verdicts on a pass that is being written."""


class Lane:
    """Runs one live session and emits what happens."""

    def __init__(
        self,
        task: Task,
        serving: Serving,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        *,
        reuse: ReusePolicy,
        placement: Placement,
        slot_width: int,
        lost: Lost,
        emit: Emit,
        moved: Callable[[], None],
    ) -> None:
        self.reuse = reuse
        self.finished: Finished | None = None
        self.token_due = False
        """Whether a pass is in flight that has no token yet."""
        self._emit = emit
        self._moved = moved
        self._serving = LaneServing(serving, self, lost)
        self._live = LiveSession(
            task,
            cast(Serving, self._serving),
            encode=tokenizer.encode,
            decode=tokenizer.decode,
            sampling=sampling,
            reuse=reuse,
            placement=placement,
            slot_width=slot_width,
            urgent=True,
            on_tokens=self._on_tokens,
            on_pass=self._on_pass,
        )
        self._events = LaneEvents(tokenizer.decode, emit, tokenizer.control)
        self._untold: list[int] = []
        """Tokens that no event has told yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, float]] = []
        """Edits without a token under them yet: number, and when they came."""
        self._judged = 0.0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._events.length + len(self._untold)

    async def run(self) -> None:
        """Write the response."""
        try:
            self.finished = await self._live.run()
        except Exception as error:
            self._emit({"type": "failed", "message": f"{type(error).__name__}: {error}"})
            return
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._events.finish(self.finished.trajectory, self.finished.problems)

    def check(self, slots: Mapping[str, SlotState]) -> None:
        """ValueError where a text does not fit into its slot."""
        for name, state in slots.items():
            self._live.check(name, state.text)

    async def edit(self, number: int, slots: dict[str, SlotState]) -> None:
        """Change slots now."""
        self._waiting.append((number, time.monotonic()))
        await asyncio.gather(
            *(self._live.edit(name, s.text, "human", s.requirement) for name, s in slots.items())
        )

    async def pause(self) -> None:
        """Pause the session."""
        await self._serving.pause()

    def resume(self) -> None:
        """Resume the session."""
        self._serving.resume()

    async def stop(self) -> None:
        """End the response here."""
        await self._serving.stop()

    # What the gate sees.

    def pass_begins(self, fed: Sequence[int], version: int) -> None:
        """See `lane_serving.Listener`."""
        self.token_due = True
        self._moved()
        self._events.begin(self._live.states, len(fed), version)

    def pass_ends(self, served: Served) -> None:
        """See `lane_serving.Listener`. What weights on trial sampled is not streamed before."""
        self._flush()
        self.token_due = False
        self._moved()
        stop = self._events.pass_start + len(served.generated.token_ids)
        assert self.tokens == stop, f"{self.tokens} tokens were streamed, and {stop} count"

    def pass_lost(self) -> None:
        """See `lane_serving.Listener`."""
        self._flush()
        self.token_due = False
        self._events.cut(self._events.pass_start, "engine")

    # What the live session says.

    def _on_pass(self, so_far: Trajectory) -> None:
        if so_far.passes[-1].finish_reason:
            self._events.end(so_far)
        else:
            self._events.report(so_far)

    def _on_tokens(self, token_ids: Sequence[int]) -> None:
        first = self.tokens == self._events.pass_start
        self._untold += token_ids
        self.token_due = False
        self._moved()
        if first:
            self._flush()
            for number, came in self._waiting:
                ms = round(1000 * (time.monotonic() - came), 1)
                index = self._events.pass_start
                self._emit({"type": "effect", "edit": number, "index": index, "ms": ms})
            self._waiting.clear()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._untold:
            self._events.tokens(self._untold)
            self._untold = []
            if time.monotonic() - self._judged >= JUDGE:
                self._judged = time.monotonic()
                self._events.judge()
