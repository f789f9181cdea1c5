"""A comparison: one prompt written in up to four lanes, and the log of what happened.

Every page folds the same log, from its beginning or from the event that it has already: a reload,
a second tab or a lost connection costs nothing. The log is also what an exported page replays.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from actor.config import SamplingConfig
from actor.demo.lane import Lane
from actor.demo.lane_serving import Lost
from actor.demo.messages import Start
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.tasks.files import Chat
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.trajectory import Trajectory
from dynatok_online.view.events import edit_event, plain_slot


class Comparison:
    """Runs until every lane has ended; make it in an event loop."""

    def __init__(
        self,
        name: str,
        start: Start,
        servings: Sequence[Serving],
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        *,
        model: str,
        chat: Chat | None,
        slot_width: int,
        lost: Lost,
        changed: Callable[[], None],
    ) -> None:
        """`chat` makes a prompt of a message. Raises ValueError for a wrong prompt or slot."""
        self.name = name
        self.log: list[dict[str, Any]] = []
        self.states = dict(start.slots)
        self.paused = False
        self.running = True
        self.sent: set[int] = set()
        """Lanes whose response the learner has, or will get."""
        self.measured: set[int] = set()
        """Lanes of which it is said, or will be, what old KV swallowed."""
        self._edits = 0
        self._begun = time.monotonic()
        self._changed = changed
        self._movement = asyncio.Event()
        template = start.template
        if chat is not None:
            template = chat([{"role": "user", "content": template}])
        task = Task(
            name,
            template,
            start.slots,
            max_tokens=start.max_tokens,
            seed=start.seed,
            control_tokens=chat is not None,
        )
        self.emit(
            {
                "type": "session",
                "session": name,
                "model": model,
                "template": start.template,
                "slots": {slot: plain_slot(state) for slot, state in start.slots.items()},
                "lanes": list(start.lanes),
                "placement": start.placement,
                "temperature": start.temperature,
                "seed": start.seed,
                "max_tokens": start.max_tokens,
                "block_size": servings[0].engine.block_size,
            }
        )
        self.lanes = [
            Lane(
                task,
                serving,
                tokenizer,
                sampling,
                reuse=reuse,
                placement=start.placement,
                slot_width=slot_width,
                lost=lost,
                emit=self._emit_for(number),
                moved=self._movement.set,
            )
            for number, (reuse, serving) in enumerate(zip(start.lanes, servings, strict=True))
        ]
        self._task = asyncio.create_task(self._run())

    def emit(self, event: dict[str, Any]) -> None:
        """Add an event to the log: its place, from 1 on, and seconds since the session began."""
        at = round(time.monotonic() - self._begun, 4)
        self.log.append({"seq": len(self.log) + 1, "at": at, **event})
        self._changed()

    async def edit(self, slots: dict[str, SlotState], key: str) -> None:
        """Change slots now, in every lane. Raises ValueError for one that is not there."""
        for slot in slots:
            if slot not in self.states:
                raise ValueError(f"there is no slot {slot!r}; the prompt has {list(self.states)}")
        slots = {slot: state for slot, state in slots.items() if state != self.states[slot]}
        if not slots or not self.running:
            return
        for lane in self.lanes:
            lane.check(slots)
        number = self._edits
        self._edits += 1
        before = {slot: state.text for slot, state in self.states.items()}
        self.emit({**edit_event(number, before, slots), "key": key})
        self.states |= slots
        await asyncio.gather(*(lane.edit(number, slots) for lane in self.lanes))

    async def pause(self, paused: bool) -> None:
        """Pause every lane, or resume them."""
        if paused == self.paused or not self.running:
            return
        self.paused = paused
        self.emit({"type": "paused", "paused": paused})
        if paused:
            await asyncio.gather(*(lane.pause() for lane in self.lanes))
        else:
            for lane in self.lanes:
                lane.resume()

    async def stop(self) -> None:
        """End the responses here."""
        await asyncio.gather(*(lane.stop() for lane in self.lanes))

    async def ended(self) -> None:
        """Wait until every lane has ended."""
        await asyncio.wait({self._task})

    async def cancel(self) -> None:
        """Give up without a trajectory, when the server ends."""
        self._task.cancel()
        await asyncio.wait({self._task})

    @property
    def written(self) -> int:
        """Tokens of the lane that is furthest."""
        return max(lane.tokens for lane in self.lanes)

    @property
    def token_due(self) -> bool:
        """Whether a lane waits for the first token of a pass."""
        return any(lane.token_due for lane in self.lanes)

    async def moved(self, timeout: float) -> None:
        """Wait for a token, a pass or an edit, so many seconds at most."""
        self._movement.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._movement.wait(), timeout)

    @property
    def trajectories(self) -> list[Trajectory]:
        """What the engine recorded, of the lanes that have ended."""
        return [found for lane in self.lanes if (found := self.trajectory(lane)) is not None]

    def trajectory(self, lane: Lane) -> Trajectory | None:
        """What the engine recorded of a lane, with the settings of the session beside it."""
        if lane.finished is None:
            return None
        recorded = lane.finished.trajectory
        keys = ("model", "placement", "temperature", "template")
        known = {key: str(self.log[0][key]) for key in keys}
        info = {**recorded.info, **known}
        name = f"{recorded.trajectory_id}-{lane.reuse}"
        return msgspec.structs.replace(recorded, trajectory_id=name, info=info)

    async def _run(self) -> None:
        await asyncio.gather(*(lane.run() for lane in self.lanes))
        self.running = False
        self._movement.set()
        self.emit({"type": "ended"})

    def _emit_for(self, lane: int) -> Callable[[dict[str, Any]], None]:
        return lambda event: self.emit({"lane": lane, **event})
