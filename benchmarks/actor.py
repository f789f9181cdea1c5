"""`dynatok bench actor`: what edits cost while text is generated.

One engine per model generates the same prompts in every mode: `static` (one state throughout) and
edited (4 and 8 states of one slot, in equal segments), with exact reuse and the slot at the head,
exact reuse and the slot late, and sticky reuse. Prompts, number of tokens and sampling are the
same; modes take turns in one run, each round under a cache salt of its own, and a ratio is the
median over rounds of two times of the same round.

Beside each measured ratio stands its bound: static time over static time plus what the recomputed
tokens cost at the speed of a plain prefill, measured in the same run on short and on long prompts:
so much a token, and so much for each earlier position that it attends to. A second, watched run
edits by surprise and times from the edit to the first new token.

Prints a card for people, then one line of JSON for machines: a list of rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dynatok_online.trajectory import RESPONSE, Trajectory

if TYPE_CHECKING:
    from actor.engine.engine import VllmEngine
    from actor.sessions.serving import Serving
    from actor.sessions.session import Finished, LiveSession, PassReport

MODES = ("exact head", "exact late", "sticky")
MODELS = ("tiny", "60m")
STATIC = "static"


@dataclass(frozen=True)
class Shape:
    """Tokens of every prompt and response."""

    prefix: int = 256
    slot: int = 32
    response: int = 512


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    model: str
    sessions: int
    states: int
    mode: str
    tok_s: float
    """Generated tokens per second, all sessions together."""
    ratio_to_static: float
    edit_ms_p50: float | None
    """From a surprise edit to the first new token."""
    edit_ms_p95: float | None
    reused_tokens: int
    """Per session."""
    computed_tokens: int
    """Per session: positions whose KV was computed."""
    bound_ratio: float
    """What the ratio would be if recomputed tokens cost what a prefill costs, and edits nothing."""
    step_ms: float
    """One decode step of the static run."""
    prefill_ms: float
    """The prefill that one edit needs, alone."""


@dataclass
class _Timed:
    """One mode over the rounds."""

    seconds: list[float] = field(default_factory=list)
    reused: int = 0
    computed: int = 0
    pairs: int = 0
    """Positions that the computed tokens attended to."""
    edits: list[float] = field(default_factory=list)


def model_60m(folder: Path) -> str:
    """A Qwen3 of 60 million parameters with random weights, made in `folder`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=14,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


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
        from actor.sessions.session import LiveSession
        from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task

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
            reuse="sticky" if mode == "sticky" else "exact",
            placement="late" if mode == "exact late" else "head",
            **options,
        )

    def fresh_cache(self) -> None:
        """From here on nothing that is cached is found."""
        self._runs += 1
        self._serving.open(0, self._serving.new_salt(0))

    async def generate(
        self, sessions: int, states: int, mode: str, into: _Timed, **options: Any
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
        into.pairs = sum(_pairs(one.trajectory) for one in done) // sessions

    async def prefill(self, sessions: int, prefix: str, into: _Timed) -> None:
        """Prefilling alone, all sessions at once."""
        await self.generate(sessions, 1, STATIC, into, length=1, prefix=prefix)

    async def surprise(self, sessions: int, states: int, mode: str, into: _Timed) -> None:
        """All sessions once, watched, each edited at random moments: what a person does."""
        self.fresh_cache()
        await asyncio.gather(*(self._watched(i, states, mode, into) for i in range(sessions)))

    async def _watched(self, number: int, states: int, mode: str, into: _Timed) -> None:
        from actor.sessions.editors import Schedule

        seen, asked = 0, 0.0
        wake = asyncio.Event()
        segment = self._shape.response / states

        def on_tokens(token_ids: Sequence[int]) -> None:
            nonlocal seen
            seen += len(token_ids)
            wake.set()

        def on_pass(report: PassReport) -> None:
            nonlocal asked
            if asked and not report.ended and report.states["slot"] == text:
                into.edits.append(1000 * (time.perf_counter() - asked))
                asked = 0.0

        session = self.session(
            number, states, mode, editor=Schedule(()), on_tokens=on_tokens, on_pass=on_pass
        )
        running = asyncio.create_task(session.run())
        shift = random.Random(number).uniform(-0.4, 0.4) * segment
        for k in range(1, states):
            while seen < round(segment * k + shift) or asked:
                wake.clear()
                await wake.wait()
            text, asked = f"S{number}-{k}", time.perf_counter()
            await session.edit("slot", text)
        _check([await running], self._shape.response)


def _blocks(shape: Shape, sessions: Sequence[int]) -> int:
    """Blocks of an engine that holds every session twice over, and soon uses all of them again.

    A cache that was never filled would flatter whoever needs few blocks: those lie in order.
    """
    return max(128, 2 * max(sessions) * (sum(asdict(shape).values()) // 32 + 2))


def _pairs(trajectory: Trajectory) -> int:
    """Positions that the computed tokens attended to, themselves included."""
    total = 0
    for one in trajectory.passes:
        fed = sum(
            one.start if piece == RESPONSE else len(trajectory.pieces[piece])
            for piece in one.layout
        )
        total += _triangle(fed + one.stop - one.start - 1)
        total -= sum(_triangle(run.stop) - _triangle(run.start) for run in one.reuse)
    return total


def _triangle(count: int) -> int:
    return count * (count + 1) // 2


def _check(done: Sequence[Finished], length: int) -> None:
    for one in done:
        if one.problems or len(one.trajectory.response) != length:
            raise RuntimeError(
                f"a session gave {len(one.trajectory.response)} of {length} tokens; "
                f"problems: {list(one.problems)}"
            )


def measure(
    bench: Bench,
    model: str,
    shape: Shape,
    sessions: int,
    states: Sequence[int],
    modes: Sequence[str],
    rounds: int,
    progress: Progress,
) -> list[Row]:
    """All modes at one number of sessions."""
    loop = asyncio.get_event_loop()
    arms = [(1, STATIC), *((k, mode) for k in states for mode in modes)]
    # Edits are few where sessions are few. The first ones also warm up.
    surprises = arms[1:] * (rounds if sessions == 1 else 1)
    total = len(surprises) + rounds * len(arms)
    task = progress.add_task(f"{model}, {sessions} sessions", total=total)
    timed = {arm: _Timed() for arm in arms}
    short, long = _Timed(), _Timed()
    for prefix in "PL":  # warm up
        loop.run_until_complete(bench.prefill(sessions, prefix, _Timed()))
    for arm in surprises:
        progress.update(task, description=f"{model}, {sessions} sessions: edits, {arm[1]} {arm[0]}")
        loop.run_until_complete(bench.surprise(sessions, *arm, timed[arm]))
        progress.advance(task)
    for turn in range(rounds):
        loop.run_until_complete(bench.prefill(sessions, "P", short))
        loop.run_until_complete(bench.prefill(sessions, "L", long))
        # Whoever runs first in a round does not do so in the next.
        for arm in (*arms[turn % len(arms) :], *arms[: turn % len(arms)]):
            progress.update(task, description=f"{model}, {sessions} sessions: {arm[1]} {arm[0]}")
            loop.run_until_complete(bench.generate(sessions, *arm, timed[arm]))
            progress.advance(task)
    progress.remove_task(task)
    static = timed[1, STATIC]
    costs = _costs(short, long)
    return [_row(model, sessions, arm, one, static, shape, costs) for arm, one in timed.items()]


def _costs(short: _Timed, long: _Timed) -> tuple[float, float]:
    """Seconds for each token of all sessions, and for each pair."""
    tokens, pairs = np.linalg.solve(
        [[short.computed, short.pairs], [long.computed, long.pairs]],
        [statistics.median(short.seconds), statistics.median(long.seconds)],
    )
    if pairs < 0:  # too short to tell
        return statistics.median(long.seconds) / long.computed, 0.0
    return float(tokens), float(pairs)


def _row(
    model: str,
    sessions: int,
    arm: tuple[int, str],
    one: _Timed,
    static: _Timed,
    shape: Shape,
    costs: tuple[float, float],
) -> Row:
    states, mode = arm
    base = statistics.median(static.seconds)
    token, pair = costs
    extra = token * (one.computed - static.computed) + pair * (one.pairs - static.pairs)
    prompt = shape.prefix + shape.slot + 1
    first = token * prompt + pair * _triangle(prompt)
    return Row(
        model=model,
        sessions=sessions,
        states=states,
        mode=mode,
        tok_s=round(sessions * shape.response / statistics.median(one.seconds), 1),
        ratio_to_static=round(
            statistics.median(a / b for a, b in zip(static.seconds, one.seconds, strict=True)), 3
        ),
        edit_ms_p50=_quantile(one.edits, 0.5),
        edit_ms_p95=_quantile(one.edits, 0.95),
        reused_tokens=one.reused,
        computed_tokens=one.computed,
        bound_ratio=round(base / (base + extra), 3),
        step_ms=round(1000 * (base - first) / shape.response, 2),
        prefill_ms=round(1000 * extra / sessions / (states - 1), 2) if states > 1 else 0.0,
    )


def _quantile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 2) if values else None


def run(
    models: Sequence[str],
    sessions: Sequence[int],
    states: Sequence[int],
    modes: Sequence[str],
    shape: Shape,
    rounds: int,
) -> list[Row]:
    """Everything that is asked for, one engine after the other."""
    from actor.engine.engine import VllmEngine
    from dynatok_online import tiny

    rows = []
    columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
    console = Console(stderr=True)
    asyncio.set_event_loop(asyncio.new_event_loop())
    with (
        tempfile.TemporaryDirectory(prefix="dynatok-bench-") as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        for model in models:
            starting = progress.add_task(f"{model}: starting vLLM", total=None)
            path = tiny.resolve("tiny") if model == "tiny" else model_60m(Path(folder))
            # A sticky edit takes a second place for the step in which its slot is computed.
            arguments = {
                "max_num_seqs": 2 * max(sessions),
                "num_gpu_blocks_override": _blocks(shape, sessions),
            }
            quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
            engine = VllmEngine.start(path, arguments, environment=quiet, run_id=f"bench-{model}")
            progress.remove_task(starting)
            try:
                vocabulary = 99 if model == "tiny" else 32000
                bench = Bench(model, engine, vocabulary, shape)
                for count in sessions:
                    rows += measure(bench, model, shape, count, states, modes, rounds, progress)
            finally:
                engine.shutdown()
    return rows


def card(rows: Sequence[Row], shape: Shape, console: Console) -> None:
    """The figures for people."""
    console.print(
        f"Generating under edits: prefix {shape.prefix}, slot {shape.slot}, response "
        f"{shape.response} tokens.\n"
        "n: sessions at once, K: states. ratio: speed against static; bound: what the\n"
        "recomputed tokens leave of it. p50, p95: ms from a surprise edit to the first\n"
        "new token. reused, made: tokens per session found in the cache and computed."
    )
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("model", "n", "K", "mode"):
        justify: Any = "left" if name in ("model", "mode") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for name in ("tok/s", "ratio", "bound", "p50", "p95", "reused", "made"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            str(row.sessions),
            str(row.states),
            row.mode,
            f"{row.tok_s:.0f}",
            f"{row.ratio_to_static:.2f}",
            f"{row.bound_ratio:.2f}",
            "" if row.edit_ms_p50 is None else f"{row.edit_ms_p50:.1f}",
            "" if row.edit_ms_p95 is None else f"{row.edit_ms_p95:.1f}",
            str(row.reused_tokens),
            str(row.computed_tokens),
            end_section=row.mode in (STATIC, MODES[-1]),
        )
    console.print(table)
    for row in rows:
        if row.sessions == 1 and row.edit_ms_p50 is not None:
            allowed = 3 * row.step_ms + row.prefill_ms
            console.print(
                f"{row.model}, {row.mode}, {row.states} states: first token {row.edit_ms_p50:.1f} "
                f"ms after an edit; 3 decode steps and the prefill take {allowed:.1f} ms"
            )


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench actor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: dynatok bench actor --models tiny --sessions 1 8 --rounds 3",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32], help="at once")
    parser.add_argument("--states", type=int, nargs="+", default=[4, 8], help="of the slot")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--prefix", type=int, default=Shape.prefix, help="tokens before the slot")
    parser.add_argument("--slot", type=int, default=Shape.slot, help="tokens of the slot")
    parser.add_argument("--response", type=int, default=Shape.response, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=2, help="how often each mode runs")
    options = parser.parse_args(arguments)
    shape = Shape(options.prefix, options.slot, options.response)
    rows = run(
        options.models, options.sessions, options.states, options.modes, shape, options.rounds
    )
    card(rows, shape, Console())
    print(json.dumps([asdict(row) for row in rows]), flush=True)
    return 0
