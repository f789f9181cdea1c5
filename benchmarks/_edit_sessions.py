"""The sessions that `dynatok bench actor` times: the same prompts and draws in every mode."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks._edit_cost import Shape, Timed, pairs
from dynatok_online.prompt import Placement
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from actor.engine.engine import VllmEngine
    from actor.sessions.live_session import Finished, LiveSession
    from actor.sessions.serving import Serving

STATIC = "static"
PLAIN = "plain vLLM"
"""Static text again, from vLLM without anything of ours (`_plain_vllm`)."""
MODES: dict[str, tuple[str, Placement]] = {
    "exact head": ("exact", "head"),
    "exact late": ("exact", "late"),
    "sticky": ("sticky", "head"),
    **{f"refresh {last}": (f"refresh:{last}", "head") for last in (32, 64, 128)},
}
"""How each mode reuses the cache, and where its slot stands."""


class Bench:
    """One engine and everything that is measured on it."""

    def __init__(self, name: str, engine: VllmEngine, vocabulary: int, shape: Shape) -> None:
        from actor.sessions.serving import Serving

        self._name = name
        self._shape = shape
        self._vocabulary = vocabulary
        self._serving: Serving = Serving(engine, f"bench-{name}")
        self._runs = 0

    def encode(self, text: str) -> list[int]:
        """Random tokens that depend on the text alone: `P..` a prefix, `L..` as
        long as a prefix and a response, `S..` a state."""
        shape = self._shape
        lengths = {"P": shape.prefix, "L": shape.prefix + shape.response, "S": shape.slot}
        rng = random.Random(f"{self._name}/{text}")
        return rng.choices(range(5, self._vocabulary), k=lengths.get(text[0], 1))

    def session(self, number: int, states: int, mode: str, **options: Any) -> LiveSession:
        """Session `number` in a mode; all modes have the same prompt and the same draws."""
        from actor.config import SamplingConfig
        from actor.sessions.live_session import LiveSession
        from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task

        reuse, placement = MODES.get(mode, ("exact", "head"))
        length = options.pop("length", self._shape.response)
        prefix = options.pop("prefix", "P")
        segment = length / states
        # Sessions do not all edit at one moment.
        shift = random.Random(number).uniform(-0.4, 0.4) * segment
        edits = tuple(
            ScheduledEdit(round(segment * k + shift), "slot", SlotState(f"S{number}-{k}"))
            for k in range(1, states)
        )
        task = Task(
            f"{number}",
            f"{prefix}{number}\n{{{{slot}}}}\n",
            {"slot": SlotState(f"S{number}-0")},
            () if options.get("editor") else edits,
            length,
            seed=number,
        )
        return LiveSession(
            task,
            self._serving,
            encode=self.encode,
            decode=lambda token_ids: "",
            sampling=SamplingConfig(ignore_eos=True),
            reuse=reuse,
            placement=placement,
            **options,
        )

    def fresh_cache(self) -> None:
        """From here on nothing that is cached is found."""
        self._runs += 1
        self._serving.open(0, self._serving.new_salt(0))

    async def generate(
        self, sessions: int, states: int, mode: str, into: Timed, **options: Any
    ) -> None:
        """All sessions once, unwatched, with edits that are known ahead: what collecting does."""
        self.fresh_cache()
        begun = time.perf_counter()
        done = await asyncio.gather(
            *(self.session(i, states, mode, **options).run() for i in range(sessions))
        )
        into.seconds.append(time.perf_counter() - begun)
        _check(done, options.get("length", self._shape.response))
        into.reused = sum(one.counts.reused_tokens for one in done) // sessions
        into.computed = sum(one.counts.computed_tokens for one in done) // sessions
        into.preemptions += sum(one.counts.preemptions for one in done)
        into.pairs = sum(pairs(one.trajectory) for one in done) // sessions

    def prompts(self, sessions: int) -> list[list[int]]:
        """What the sessions of static text feed."""
        from actor.sessions.recorder import fed_tokens
        from dynatok_online.tasks.rendering import renderer_of

        found = []
        for number in range(sessions):
            task = self.session(number, 1, STATIC).task
            renderer = renderer_of(task, self.encode)
            layout = renderer.layout({name: state.text for name, state in task.states.items()})
            found.append(fed_tokens(layout, renderer.pieces, []).tolist())
        return found

    async def prefill(self, sessions: int, prefix: str, into: Timed) -> None:
        """Prefilling alone, all sessions at once."""
        await self.generate(sessions, 1, STATIC, into, length=1, prefix=prefix)

    async def surprise(self, sessions: int, states: int, mode: str, into: Timed) -> None:
        """All sessions once, watched, each edited at random moments: what a person does."""
        self.fresh_cache()
        await asyncio.gather(*(self.watched(i, states, mode, into) for i in range(sessions)))

    async def watched(
        self, number: int, states: int, mode: str, into: Timed, **options: Any
    ) -> Finished:
        """One session that is edited at random moments."""
        from actor.sessions.editors import Schedule

        seen, asked = 0, 0.0
        wake = asyncio.Event()
        segment = self._shape.response / states

        def on_tokens(token_ids: Sequence[int]) -> None:
            nonlocal seen
            seen += len(token_ids)
            wake.set()

        def on_pass(so_far: Trajectory) -> None:
            nonlocal asked
            begun = not so_far.passes[-1].finish_reason
            if asked and begun and so_far.passes[-1].states["slot"] == text:
                into.edits.append(1000 * (time.perf_counter() - asked))
                asked = 0.0

        session = self.session(
            number,
            states,
            mode,
            editor=Schedule(()),
            on_tokens=on_tokens,
            on_pass=on_pass,
            **options,
        )
        running = asyncio.create_task(session.run())
        shift = random.Random(number).uniform(-0.4, 0.4) * segment
        try:
            for k in range(1, states):
                while seen < round(segment * k + shift) or asked:
                    wake.clear()
                    await wake.wait()
                text, asked = f"S{number}-{k}", time.perf_counter()
                await session.edit("slot", text)
            finished = await running
        finally:
            running.cancel()
        _check([finished], self._shape.response)
        return finished


def _check(done: Sequence[Finished], length: int) -> None:
    for one in done:
        if one.problems or len(one.trajectory.response) != length:
            raise RuntimeError(
                f"a session gave {len(one.trajectory.response)} of {length} tokens; "
                f"problems: {list(one.problems)}"
            )
