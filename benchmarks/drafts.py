"""`dynatok bench drafts`: what guessing ahead gains, and what it costs where it cannot.

Two engines of one model, one of which is given drafts, write the same tasks in turn:

- `loop`: one session, the likeliest token each time, a new task in every round. Such text repeats
  itself; `again in itself` says how much of it (tri-grams that stood in it before).
- `over`: the same session starts over with the same prompt.
- `first, drawn` and `over, drawn`: the same at temperature 1; over with another seed, so it is
  another text.
- `many`: new tasks at temperature 1, 32 sessions at once.

A ratio is the speed with drafts over that without, of the same round; rounds take turns in which
engine goes first. Prints a card for people, then one line of JSON for machines: a list of rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks._page import write_section

if TYPE_CHECKING:
    from actor.engine.engine import VllmEngine
    from actor.sessions.live_session import Finished
    from actor.tokenizer import Tokenizer
    from dynatok_online.tasks.task import Task

TASKS = "dynatok_online.tasks.writing:ROWS"
"""What a model with a chat template writes."""


@dataclass(frozen=True)
class Situation:
    """What is written."""

    name: str
    sessions: int
    temperature: float
    begun: bool = False
    """Whether the same tasks have been written right before."""


def situations(sessions: int) -> tuple[Situation, ...]:
    """All of them, in the order in which they are measured."""
    return (
        Situation("loop", 1, 0.0),
        Situation("over", 1, 0.0, begun=True),
        Situation("first, drawn", 1, 1.0),
        Situation("over, drawn", 1, 1.0, begun=True),
        Situation("many", sessions, 1.0),
    )


@dataclass
class Measured:
    """One situation over the rounds."""

    without: list[float] = field(default_factory=list)
    """Tokens per second."""
    given: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    model: str
    tokens: int
    situation: str
    sessions: int
    rounds: int
    tok_s_without: float
    tok_s: float
    ratio: float
    """Median over rounds."""
    least: float
    most: float
    again_in_itself: float
    """Share of a text's tri-grams that stood in it before."""


class Bench:
    """Two engines, and the tasks that they write."""

    def __init__(
        self, engines: dict[bool, VllmEngine], tokenizer: Tokenizer, tasks: Iterator[Task]
    ) -> None:
        from actor.sessions.serving import Serving

        self._servings = {on: Serving(one, f"bench-{on}") for on, one in engines.items()}
        self._tokenizer = tokenizer
        self._tasks = tasks

    def tasks(self, count: int, length: int) -> list[Task]:
        """The next ones, without their edits."""
        import msgspec

        return [
            msgspec.structs.replace(next(self._tasks), edits=(), rules=(), max_tokens=length)
            for _ in range(count)
        ]

    async def write(self, on: bool, tasks: Sequence[Task], temperature: float) -> list[Finished]:
        """All tasks at once, on a cache that holds nothing of them."""
        from actor.config import SamplingConfig
        from actor.sessions.live_session import LiveSession

        serving = self._servings[on]
        serving.open(0, serving.new_salt(0))
        sampling = SamplingConfig(ignore_eos=True, temperature=temperature)
        encode, decode = self._tokenizer.encode, self._tokenizer.decode
        live = [
            LiveSession(one, serving, encode=encode, decode=decode, sampling=sampling)
            for one in tasks
        ]
        return await asyncio.gather(*(one.run() for one in live))

    async def timed(
        self, on: bool, tasks: Sequence[Task], situation: Situation, into: Measured
    ) -> None:
        begun = time.perf_counter()
        done = await self.write(on, tasks, situation.temperature)
        seconds = time.perf_counter() - begun
        for one in done:
            if one.problems:
                raise RuntimeError(f"the audit found: {one.problems}")
        count = sum(len(one.trajectory.response) for one in done)
        (into.given if on else into.without).append(count / seconds)
        into.again += [again(one.trajectory.response.tolist()) for one in done]


def again(text: Sequence[int]) -> float:
    """Share of the tri-grams that stood in the text before."""
    grams = list(zip(text, text[1:], text[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench drafts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: dynatok bench drafts --rounds 3",
    )
    parser.add_argument("--model", default="tiny", help="tiny, or a folder with a chat template")
    parser.add_argument("--tokens", type=int, default=4, help="most tokens of a guess")
    parser.add_argument("--method", choices=("seen", "ngram"), default="seen")
    parser.add_argument("--sessions", type=int, default=32, help="of `many`")
    parser.add_argument("--response", type=int, default=256, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5, help="how often each situation runs")
    parser.add_argument("--page", type=Path, help="write the figures into this page")
    options = parser.parse_args(arguments)
    rows = run(
        options.model,
        options.tokens,
        options.method,
        options.sessions,
        options.response,
        options.rounds,
    )
    table = Table("situation", "n", "tok/s without", "with", "ratio", "rounds", "again in itself")
    lines = [_cells(row) for row in rows]
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if options.page is not None:
        name = Path(options.model).name
        heading = f"## Guessing ahead: {name}, {options.method}, {options.tokens} tokens"
        write_section(options.page, heading, _section(lines, options.response))
    print(json.dumps([asdict(row) for row in rows]), flush=True)
    return 0


def run(
    model: str, tokens: int, method: str, sessions: int, response: int, rounds: int
) -> list[Row]:
    """Both engines, all situations."""
    import msgspec

    from actor.config import DraftsConfig
    from actor.engine.engine import VllmEngine
    from actor.task_source import tasks
    from actor.tokenizer import chat_of, load_tokenizer
    from dynatok_online import tiny

    drafts = msgspec.convert({"tokens": tokens, "method": method}, DraftsConfig)
    path = tiny.resolve(model)
    source = tasks("tiny" if model == "tiny" else TASKS, "heldout", 0, chat=partial(chat_of, path))
    arguments = {"max_num_seqs": sessions, "max_model_len": 512}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    asyncio.set_event_loop(asyncio.new_event_loop())
    loop = asyncio.get_event_loop()
    found = {one: Measured() for one in situations(sessions)}
    with ExitStack() as stack, Progress(console=Console(stderr=True)) as progress:
        starting = progress.add_task("starting vLLM twice", total=None)
        engines: dict[bool, VllmEngine] = {}
        for on in (False, True):
            engines[on] = VllmEngine.start(
                path,
                arguments,
                drafts=drafts if on else DraftsConfig(),
                environment=quiet,
                run_id=f"bench-drafts-{on}",
            )
            stack.callback(engines[on].shutdown)
        progress.remove_task(starting)
        bench = Bench(engines, load_tokenizer(path), source)
        for on in (False, True):  # warm up
            loop.run_until_complete(bench.write(on, bench.tasks(sessions, 32), 1.0))
        todo = progress.add_task("", total=rounds * len(found) * 2)
        for number in range(rounds):
            written: list[Task] = []
            for situation, into in found.items():
                if not situation.begun:
                    written = bench.tasks(situation.sessions, response)
                for on in (False, True) if number % 2 else (True, False):
                    progress.update(todo, description=f"round {number + 1}: {situation.name}")
                    texts = written
                    if situation.begun and situation.temperature:
                        texts = [msgspec.structs.replace(one, seed=one.seed + 1) for one in written]
                    loop.run_until_complete(bench.timed(on, texts, situation, into))
                    progress.advance(todo)
    return [_row(Path(model).name, tokens, one, into) for one, into in found.items()]


def _row(model: str, tokens: int, situation: Situation, found: Measured) -> Row:
    ratios = [a / b for a, b in zip(found.given, found.without, strict=True)]
    return Row(
        model,
        tokens,
        situation.name,
        situation.sessions,
        len(ratios),
        round(statistics.median(found.without), 1),
        round(statistics.median(found.given), 1),
        round(statistics.median(ratios), 3),
        round(min(ratios), 3),
        round(max(ratios), 3),
        round(statistics.mean(found.again), 3),
    )


def _cells(row: Row) -> list[str]:
    return [
        row.situation,
        str(row.sessions),
        f"{row.tok_s_without:.0f}",
        f"{row.tok_s:.0f}",
        f"{row.ratio:.2f}",
        f"{row.rounds} ({row.least:.2f} to {row.most:.2f})",
        f"{row.again_in_itself:.2f}",
    ]


def _section(lines: Sequence[Sequence[str]], response: int) -> list[str]:
    day = datetime.now(UTC).date().isoformat()
    return [
        f"{day}, responses of {response} tokens, two engines in turn; a ratio is the median over "
        "rounds (least and greatest in brackets). `over` writes the text before it once more, "
        "`over, drawn` another one of the same prompt.",
        "",
        "| situation | sessions | tok/s without | with | ratio | rounds | again in itself |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
