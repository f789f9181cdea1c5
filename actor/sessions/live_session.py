"""A live session: one response, written pass by pass while its prompt changes.

Every pass feeds the prompt in its current states and the whole response so far. What ends a pass:
an edit known ahead (its token limit), a surprise edit or new weights (an abort that keeps every
token received), a stop token, or a limit. Sessions are independent; many run at once.

How a session treats the cache and its slots is chosen when it is made:

- `reuse`: `exact` takes an unchanged prefix from the cache, so a pass equals a fresh prompt;
  `sticky` recomputes only an edited slot and keeps all that comes after it, `refresh:64` but for
  its last 64 tokens, `turned` also where a slot has changed its width (`dynatok_online.policy`);
  `none` starts over.
- `placement`: `head` leaves slots where the template puts them; `late` moves their lines behind
  the response so far, just before the next token (`dynatok_online.prompt.late`).
- `urgent`: somebody waits for it; its passes go before those of other sessions in the engine.
- `on_pass` gets the trajectory so far, up to a pass that has its first token (only if `on_tokens`
  is given too, since other passes do not stream; no token of it is in the trajectory yet, and its
  `finish_reason` is empty), and again when that pass has ended.
"""

from __future__ import annotations

import asyncio
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actor.config import ReusePolicy, SamplingConfig
from actor.sessions.editors import Editor, PlannedEdit, Schedule
from actor.sessions.generation import CacheLog
from actor.sessions.recorder import Counts, Recorder, fed_tokens
from actor.sessions.serving import Interrupt, Serving
from dynatok_online.adherence.passes import begins_thinking
from dynatok_online.adherence.scoring import Decode, judged
from dynatok_online.policy import parse_policy
from dynatok_online.prompt import Placement, Prompt
from dynatok_online.tasks.rendering import renderer_of
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.trajectory import Edit, Pass, Trajectory

OnPassTokens = Callable[[Sequence[int]], None]
OnPass = Callable[[Trajectory], None]
"""Called with the trajectory so far; the pass that it is about is the last one."""


@dataclass(frozen=True)
class Finished:
    """A response that is complete."""

    trajectory: Trajectory
    counts: Counts
    problems: tuple[str, ...]
    """Reports of the engine that cannot be true."""
    unaudited: str = ""
    """Why nobody could hold the record against the engine's cache events; empty if somebody did."""


class LiveSession:
    """Runs one task to its end. `edit` may be called from other coroutines at any time.

    With `reuse="sticky"` or `refresh`, or a `slot_width`, slots have a fixed width in tokens (see
    `dynatok_online.tasks.rendering`); ValueError for a state that does not fit.
    """

    def __init__(
        self,
        task: Task,
        serving: Serving,
        *,
        encode: Callable[[str], list[int]],
        decode: Decode,
        sampling: SamplingConfig,
        editor: Editor | None = None,
        seeded: bool = True,
        reuse: ReusePolicy = "exact",
        placement: Placement = "head",
        slot_width: int = 0,
        urgent: bool = False,
        on_tokens: OnPassTokens | None = None,
        on_pass: OnPass | None = None,
    ) -> None:
        self.task = task
        self.states: dict[str, SlotState] = dict(task.states)
        """What stands in the slots now."""
        self._serving = serving
        self._policy = parse_policy(reuse)
        self._renderer = renderer_of(
            task,
            encode,
            fixed_width=self._policy.fixed_width,
            placement=placement,
            slot_width=slot_width,
        )
        self.prompt: Prompt = self._renderer.prompt
        """What is rendered, in its placement."""
        self._decode = decode
        self._sampling = sampling
        self._editor = Schedule(task.edits) if editor is None else editor
        self._seeded = seeded
        self._urgent = urgent
        self._on_tokens = on_tokens
        self._on_pass = on_pass
        self._recorder = Recorder(
            serving.engine.block_size,
            reuse,
            serving.new_session() if self._policy.keeps else "",
            serving.engine.unreported,
        )
        self._pass_states: list[tuple[int, dict[str, SlotState]]] = []
        self._limit = min(task.max_tokens, sampling.max_tokens or task.max_tokens)
        self._surprises: list[PlannedEdit] = []
        self._interrupt: Interrupt | None = None
        self._pass_over = asyncio.Event()
        self._streamed = 0
        self._done = False

    async def edit(
        self, slot: str, text: str, source: str = "human", requirement: str | None = None
    ) -> bool:
        """Change a slot now: the pass in flight ends, the next one sees the new text.

        Returns once that pass has ended. False, and nothing is changed, where the response ended
        with it or before. Raises ValueError for a slot that the prompt does not have, or a text
        that does not fit into it.
        """
        self.check(slot, text)
        if self._done:
            return False
        asked_at = len(self._recorder.response) + self._streamed
        planned = PlannedEdit(slot, SlotState(text, requirement), asked_at, source)
        self._surprises.append(planned)
        if self._interrupt is not None:
            over = self._pass_over
            await self._interrupt.now("edit")
            await over.wait()
        return not self._came_too_late(planned)

    def _came_too_late(self, planned: PlannedEdit) -> bool:
        """Whether the response has ended without it: its last token may have been on its way."""
        return self._done and any(one is planned for one in self._surprises)

    def check(self, slot: str, text: str) -> None:
        """ValueError for a slot that the prompt does not have, or a text that does not fit."""
        if slot not in self.states:
            raise ValueError(f"there is no slot {slot!r}; the prompt has {sorted(self.states)}")
        self._renderer.check(slot, text)

    async def run(self) -> Finished:
        """Write the response. Cancelling this ends the pass in flight and gives up."""
        log = self._serving.engine.cache_log
        try:
            finish = ""
            while finish not in ("stop", "length"):
                finish = await self._pass()
        except BaseException:
            self._forget(log)
            raise
        finally:
            self._done = True
            if self._policy.keeps:
                self._serving.engine.end_session(self._recorder.session)
        if log is not self._serving.engine.cache_log:
            # An engine has died, and another one serves: neither's log knows all passes.
            self._recorder.unaudited = "the engine that served its first passes has died"
            self._forget(log)
        elif log is not None:
            await self._recorder.confirm(log)
        return self._finished()

    def _forget(self, first: CacheLog | None) -> None:
        """Tell the log of the first engine, and of the one that serves now."""
        for log in (first, self._serving.engine.cache_log):
            if log is not None:
                log.forget(self._recorder.requests)

    async def _pass(self) -> str:
        """One pass; returns why it ended."""
        recorder = self._recorder
        await self._serving.ready()
        # From here to the submission nothing may be awaited: see `Serving.run`.
        at = len(recorder.response)
        for planned in (*self._editor.due(at), *self._surprises):
            self._apply(planned, at)
        texts = {name: state.text for name, state in self.states.items()}
        layout = self._renderer.layout(texts)
        fed = fed_tokens(layout, self._renderer.pieces, recorder.response)
        room = min(self._limit - at, self._serving.engine.max_model_len - len(fed))
        if room <= 0:
            return "length"
        self._surprises.clear()
        salt = self._serving.cache_salt
        keep = recorder.keep(fed, salt, self._draw(at), layout=layout, table=self._renderer.pieces)
        next_edit = self._editor.next_index(at)
        known_edit = next_edit is not None and next_edit - at < room
        interrupt = self._interrupt = Interrupt()
        over = self._pass_over = asyncio.Event()
        self._streamed = 0

        def started(cached: int) -> None:
            if self._on_pass is not None:
                begun = recorder.begun_pass(
                    layout=layout, states=texts, fed=fed, cache_salt=salt, cached=cached, keep=keep
                )
                self._on_pass(self._trajectory(begun=begun))

        try:
            served = await self._serving.run(
                fed.tolist(),
                sampling=self._sampling,
                max_tokens=next_edit - at if known_edit and next_edit is not None else room,
                seed=self._pass_seed(at),
                interrupt=interrupt,
                read_cache=self._policy.text != "none",
                urgent=self._urgent,
                keep=keep,
                on_start=started,
                on_tokens=None if self._on_tokens is None else self._stream,
            )
        finally:
            self._interrupt = None
            self._streamed = 0
            over.set()
        finish = served.generated.finish_reason
        if finish == "abort":
            if interrupt.reason is None:
                recorder.empty_pass(served, len(keep.heads) if keep else 0)
                raise RuntimeError(f"task {self.task.task_id}: the engine aborted a pass by itself")
            finish = interrupt.reason
        elif finish == "length" and known_edit:
            finish = "edit"
        if not served.generated.token_ids:
            recorder.empty_pass(served, len(keep.heads) if keep else 0)
            return finish
        self._pass_states.append((at, dict(self.states)))
        recorder.add_pass(
            served, layout=layout, states=texts, fed=fed, finish_reason=finish, keep=keep
        )
        if self._on_pass is not None:
            self._on_pass(self._trajectory())
        return finish

    def _apply(self, planned: PlannedEdit, at: int) -> None:
        if planned.slot not in self.states:
            raise ValueError(
                f"task {self.task.task_id}: edit of slot {planned.slot!r}, but the prompt has "
                f"{sorted(self.states)}"
            )
        self.states[planned.slot] = planned.state
        # Nobody saw the tokens of an unwatched pass: such an edit was asked for where it ended.
        asked_at = planned.requested_at if self._on_tokens or planned.source == "schedule" else at
        self._recorder.add_edit(
            Edit(planned.slot, planned.state.text, asked_at, at, planned.source)
        )

    def _stream(self, token_ids: Sequence[int]) -> None:
        self._streamed += len(token_ids)
        if self._on_tokens is not None:
            self._on_tokens(token_ids)

    def _pass_seed(self, at: int) -> int | None:
        """A seed for the draws of the pass that begins at response index `at`."""
        if not self._seeded:
            return None
        return zlib.crc32(self._draw(at).encode())

    def _draw(self, at: int) -> str:
        """Names what is drawn for the pass that begins at response index `at`."""
        return f"{self.task.seed}/{self.task.task_id}/{at}"

    def _finished(self) -> Finished:
        recorder = self._recorder
        written = judged(
            self._trajectory(),
            [self._states_at(one.start) for one in recorder.passes],
            self._decode,
            thinking=begins_thinking(self.prompt),
        )
        problems = tuple(recorder.problems)
        return Finished(written, recorder.counts, problems, recorder.unaudited)

    def _trajectory(self, begun: Pass | None = None) -> Trajectory:
        """What happened so far; see `Recorder.trajectory`."""
        info = {"task": self.task.task_id, "seed": str(self.task.seed), "reuse": self._policy.text}
        return self._recorder.trajectory(self.task.task_id, self._renderer.pieces, info, begun)

    def _states_at(self, index: int) -> Mapping[str, SlotState]:
        """The slots under which response token `index` was sampled."""
        return self._pass_states[bisect_right(self._pass_states, index, key=lambda at: at[0]) - 1][
            1
        ]
