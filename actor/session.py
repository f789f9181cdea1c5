"""A live session: one response, written pass by pass while its prompt changes.

Every pass feeds the prompt in its current states and the whole response so far. What ends a pass:
an edit known ahead (its token limit), a surprise edit or new weights (an abort that keeps every
token received), a stop token, or a limit. Sessions are independent; many run at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actor.config import SamplingConfig
from actor.editors import Editor, PlannedEdit, Schedule
from actor.recorder import Counts, Recorder, fed_tokens
from actor.scoring import Decode, score_passes
from actor.serving import Interrupt, Serving
from dynatok_online.prompt import Renderer, parse
from dynatok_online.tasks import SlotState, Task
from dynatok_online.trajectory import Edit, Trajectory

OnPassTokens = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class Finished:
    """A response that is complete."""

    trajectory: Trajectory
    counts: Counts
    problems: tuple[str, ...]
    """Reports of the engine that cannot be true."""


class LiveSession:
    """Runs one task to its end. `edit` may be called from other coroutines at any time."""

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
        on_tokens: OnPassTokens | None = None,
    ) -> None:
        self.task = task
        self.states: dict[str, SlotState] = dict(task.states)
        """What stands in the slots now."""
        self._serving = serving
        self._renderer = Renderer(parse(task.template), encode)
        self._decode = decode
        self._sampling = sampling
        self._editor = Schedule(task.edits) if editor is None else editor
        self._seeded = seeded
        self._on_tokens = on_tokens
        self._recorder = Recorder(serving.engine.block_size)
        self._pass_states: list[dict[str, SlotState]] = []
        self._limit = min(task.max_tokens, sampling.max_tokens or task.max_tokens)
        self._surprises: list[PlannedEdit] = []
        self._interrupt: Interrupt | None = None
        self._streamed = 0
        self._done = False

    async def edit(
        self, slot: str, text: str, source: str = "human", requirement: str | None = None
    ) -> bool:
        """Change a slot now: the pass under way ends, the next one sees the new text.

        Returns False, and changes nothing, where the response has already ended. Raises
        ValueError for a slot that the prompt does not have.
        """
        if slot not in self.states:
            raise ValueError(f"there is no slot {slot!r}; the prompt has {sorted(self.states)}")
        if self._done:
            return False
        asked_at = len(self._recorder.response) + self._streamed
        self._surprises.append(PlannedEdit(slot, SlotState(text, requirement), asked_at, source))
        if self._interrupt is not None:
            await self._interrupt.now("edit")
        return True

    async def run(self) -> Finished:
        """Write the response. Cancelling this ends the pass under way and gives up."""
        try:
            finish = ""
            while finish not in ("stop", "length"):
                finish = await self._pass()
        finally:
            self._done = True
        return self._finished()

    async def _pass(self) -> str:
        """One pass; returns why it ended."""
        recorder = self._recorder
        await self._serving.ready()
        # From here to the submission nothing may be awaited: see `Serving.run`.
        at = len(recorder.response)
        for planned in (*self._editor.due(at), *self._surprises):
            self._apply(planned, at)
        self._surprises.clear()
        texts = {name: state.text for name, state in self.states.items()}
        layout = self._renderer.layout(texts)
        fed = fed_tokens(layout, self._renderer.pieces, recorder.response)
        room = min(self._limit - at, self._serving.engine.max_model_len - len(fed))
        if room <= 0:
            return "length"
        next_edit = self._editor.next_index(at)
        known_edit = next_edit is not None and next_edit - at < room
        interrupt = self._interrupt = Interrupt()
        self._streamed = 0
        try:
            served = await self._serving.run(
                fed,
                sampling=self._sampling,
                max_tokens=next_edit - at if known_edit and next_edit is not None else room,
                seed=self._pass_seed(at),
                interrupt=interrupt,
                on_tokens=None if self._on_tokens is None else self._stream,
            )
        finally:
            self._interrupt = None
            self._streamed = 0
        finish = served.generated.finish_reason
        if finish == "abort":
            if interrupt.reason is None:
                raise RuntimeError(f"task {self.task.task_id}: the engine aborted a pass by itself")
            finish = interrupt.reason
        elif finish == "length" and known_edit:
            finish = "edit"
        if served.generated.token_ids:
            self._pass_states.append(dict(self.states))
        recorder.add_pass(served, layout=layout, states=texts, fed=fed, finish_reason=finish)
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
        return zlib.crc32(f"{self.task.seed}/{self.task.task_id}/{at}".encode())

    def _finished(self) -> Finished:
        recorder = self._recorder
        scores = score_passes(
            recorder.response,
            [(one.start, one.stop) for one in recorder.passes],
            self._pass_states,
            self._decode,
        )
        trajectory = recorder.trajectory(
            self.task.task_id, self._renderer.pieces, scores, _info(self.task)
        )
        return Finished(trajectory, recorder.counts, tuple(recorder.problems))


def _info(task: Task) -> Mapping[str, str]:
    return {"task": task.task_id, "seed": str(task.seed)}
