"""One lane of a session: a live session under one reuse policy, told as events.

Events are plain dicts that the page folds into what it shows (`page/store.js`); a stored
trajectory is told in the same words by `replay`. Times are seconds since the session began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from actor.config import SamplingConfig
from actor.demo.config import Reuse
from actor.demo.gate import Gate, Lost
from actor.demo.record import Record
from actor.sessions.live_session import Finished, LiveSession, PassReport
from actor.sessions.serving import Served, Serving
from actor.tokenizer import Tokenizer
from dynatok_online.prompt import Placement
from dynatok_online.spans.blocks import blocks
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.view.replay import end_event, piece_events
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict

Emit = Callable[[dict[str, Any]], None]

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
        reuse: Reuse,
        placement: Placement,
        slot_width: int,
        lost: Lost,
        emit: Emit,
        moved: Callable[[], None],
    ) -> None:
        self.reuse = reuse
        self.finished: Finished | None = None
        self.tokens = 0
        """Tokens that the page has seen."""
        self.token_due = False
        """Whether a pass is under way that has no token yet."""
        self._encode = tokenizer.encode
        self._widths = {
            name: max(slot_width, len(tokenizer.encode(state.text)))
            for name, state in task.states.items()
        }
        self._emit = emit
        self._moved = moved
        self._begun = time.monotonic()
        self._gate = Gate(serving, self, lost)
        self._live = LiveSession(
            task,
            cast(Serving, self._gate),
            encode=tokenizer.encode,
            decode=tokenizer.decode,
            sampling=sampling,
            reuse=reuse,
            placement=placement,
            slot_width=slot_width,
            on_tokens=self._on_tokens,
            on_pass=self._on_pass,
        )
        self._texts = TokenTexts(tokenizer.decode)
        self._bounds: list[tuple[int, int]] = []
        self._states: list[dict[str, SlotState]] = []
        self._verdicts: list[dict[str, Any]] = []
        self._record = Record(task.task_id, reuse, serving.engine.block_size)
        self._pieces: set[int] = set()
        """Those that the page knows."""
        self._waiting: list[tuple[int, float]] = []
        """Edits without a token under them yet: number, and when they came."""
        self._flushed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._judged = 0.0

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
        if self._bounds and self._bounds[-1][0] == self._bounds[-1][1]:
            self._emit({"type": "void", "index": len(self._bounds) - 1})
        counts = self.finished.counts
        self._emit(
            {
                "type": "finished",
                "at": self._now(),
                "finish": self._finish(),
                "computed": counts.computed_tokens,
                "reused": counts.reused_tokens,
                "problems": list(self.finished.problems),
            }
        )

    def check(self, slots: Mapping[str, SlotState]) -> None:
        """ValueError where a text does not fit into its slot."""
        for name, state in slots.items():
            width, tokens = self._widths[name], len(self._encode(state.text))
            if self.reuse == "sticky" and tokens > width:
                raise ValueError(
                    f"the sticky lane's slot {name!r} is {width} tokens wide, and this text has "
                    f"{tokens}; write a shorter one, or begin with a longer one"
                )

    async def edit(self, number: int, slots: dict[str, SlotState]) -> None:
        """Change slots now."""
        self._waiting.append((number, time.monotonic()))
        await asyncio.gather(
            *(self._live.edit(name, s.text, "human", s.requirement) for name, s in slots.items())
        )

    async def pause(self) -> None:
        """Hold the session."""
        await self._gate.pause()

    def resume(self) -> None:
        """Go on."""
        self._gate.resume()

    async def stop(self) -> None:
        """End the response here."""
        await self._gate.stop()

    # What the gate sees.

    def pass_begins(self, fed: Sequence[int], version: int) -> None:
        """See `gate.Watcher`."""
        start = len(self._texts.ids)
        self.token_due = True
        self._moved()
        if self._bounds and self._bounds[-1][0] == start:  # the one before had no token
            self._bounds.pop(), self._states.pop(), self._verdicts.pop()
        self._bounds.append((start, start))
        self._states.append(dict(self._live.states))
        self._verdicts.append({})
        self._emit(
            {
                "type": "pass",
                "index": len(self._bounds) - 1,
                "start": start,
                "fed": len(fed),
                "states": {name: state.text for name, state in self._live.states.items()},
                "version": version,
                "at": self._now(),
            }
        )

    def pass_ends(self, served: Served) -> None:
        """See `gate.Watcher`."""
        self._flush()
        self.token_due = False
        self._moved()
        start = self._bounds[-1][0]
        assert len(self._texts.ids) == start + len(served.generated.token_ids)
        self._record.sampled(served)

    def pass_lost(self) -> None:
        """See `gate.Watcher`."""
        self._flush()
        self.token_due = False
        start = self._bounds[-1][0]
        self._texts.cut(start)
        self.tokens = self._flushed = start
        self._emit({"type": "lost", "index": len(self._bounds) - 1, "start": start})

    def _on_pass(self, report: PassReport) -> None:
        """The session knows which blocks a pass uses: at its first token, and at its end."""
        k = self._record.passes
        trajectory = self._record.with_pass(report, self._texts.ids)
        for event in piece_events(trajectory, k, self._texts.decode, self._pieces):
            self._emit(event)
        if report.ended:
            self._emit({**end_event(trajectory, k), "at": self._now()})
            self._judge(final=True)
            return
        self._emit(
            {
                "type": "blocks",
                "index": k,
                "layout": list(report.layout),
                "cached": report.reused_tokens,
                # What a sticky pass's heads found in the cache is known at its end.
                "blocks": [
                    ["pending" if kind == "evicted" else kind, *rest]
                    for kind, *rest in blocks(trajectory, k)
                ],
            }
        )

    def _on_tokens(self, token_ids: Sequence[int]) -> None:
        first = len(self._texts.ids) == self._bounds[-1][0]
        self._texts.extend(token_ids)
        self.tokens = len(self._texts.ids)
        self.token_due = False
        self._moved()
        self._bounds[-1] = (self._bounds[-1][0], self.tokens)
        if first:
            self._flush()
            for number, came in self._waiting:
                ms = round(1000 * (time.monotonic() - came), 1)
                index = self._bounds[-1][0]
                self._emit({"type": "effect", "edit": number, "index": index, "ms": ms})
            self._waiting.clear()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushed < len(self._texts.ids):
            self._emit(
                {
                    "type": "tokens",
                    "start": self._flushed,
                    "ids": self._texts.ids[self._flushed :],
                    "texts": self._texts.texts[self._flushed :],
                    "at": self._now(),
                }
            )
            self._flushed = len(self._texts.ids)
            self._judge()

    def _judge(self, final: bool = False) -> None:
        """Emit the verdicts that have changed; the last two passes are the ones that can."""
        now = time.monotonic()
        if not final and now - self._judged < JUDGE:
            return
        self._judged = now
        for k in range(max(0, len(self._bounds) - 2), len(self._bounds)):
            if self._bounds[k][0] < self._bounds[k][1]:
                found = verdict(self._texts, self._bounds, k, self._states[k])
                if found != self._verdicts[k]:
                    self._verdicts[k] = found
                    self._emit({"type": "verdict", "index": k, **found})

    def _finish(self) -> str:
        assert self.finished is not None
        passes = self.finished.trajectory.passes
        return passes[-1].finish_reason if passes else "length"

    def _now(self) -> float:
        return round(time.monotonic() - self._begun, 4)
