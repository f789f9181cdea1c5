"""`dynatok gold`: gold responses that nobody wrote, of the model's own texts.

Every task is asked without the lines that hold its slots. What the model writes is cut, rewritten
segment by segment under the task's states and edits, and checked by their verifiers
(`dynatok_online.tasks.rewriting`). What comes out are task rows with gold responses, one JSON
object a line, which `dynatok train` reads.

Text number N depends on the settings and N alone, and so does each of the `rewrites` rows that are
made of it, so a file that was begun is resumed behind the highest number in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from actor.offline.alone import Alone, Bad, chat_from, say, with_engine
from actor.offline.collect import alone_in
from actor.offline.config import GoldConfig
from actor.task_source import task_rows
from dynatok_online.data.storage import read_rows
from dynatok_online.requirements.rewrites import can_rewrite
from dynatok_online.tasks.files import Chat, TaskRow, make_task, split_of
from dynatok_online.tasks.rewriting import plain_row, rewritten, tidy
from dynatok_online.tasks.task import Task
from protocol.run.progress import progress_bar

_NAME = re.compile(r"gold-([0-9]+)")
PATIENCE = 20
"""Texts that are asked for, for one that is wanted, before it gives up."""

Write = Callable[[Task], Any]
"""A task -> the text that the model writes, awaited."""


def run(config: GoldConfig) -> int:
    """Make texts until the file holds as many as asked for; the exit code. Raises ValueError."""
    path = Path(config.out)
    bad = Bad()
    rows = task_rows(config.tasks, bad if config.skip_bad else None)
    maker = Maker(config, rows, chat_from(config) if any(r.messages for r, _ in rows) else None)
    with alone_in(path.parent):
        held, next_row = stored(path)
        begun = next_text(next_row, config.rewrites)
        if held:
            say(f"{path} holds {held} texts already; what is added is of these settings")
        counts: Counter[str] = Counter()
        if held < config.texts:
            with (
                path.open("a", encoding="utf-8") as file,
                progress_bar("gold", config.texts, done=held, more="the engine is starting") as bar,
            ):

                def keep(row: dict[str, Any]) -> None:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    bar.move(held + counts["kept"], f"{counts['short']} too short")

                async def work(alone: Alone) -> None:
                    async def write(task: Task) -> str:
                        finished = await alone.session(task, "exact").run()
                        return alone.decode(finished.trajectory.response.tolist())

                    wanted = config.texts - held
                    await make(maker, wanted, begun, config.sessions, write, keep, counts)

                with_engine(config, config.seed, work)
    numbers = {name: counts[name] for name in ("sampled", "kept", "short", "unfit")}
    total = held + counts["kept"]
    print(json.dumps({"out": str(path), "texts": total, **numbers, "bad_tasks": bad.count}))
    if total < config.texts:
        say(
            f"only {total} of {config.texts} texts: {counts['short']} were too short and "
            f"{counts['unfit']} could not be rewritten; lower least_words or ask for longer texts"
        )
        return 1
    return 0


def stored(path: Path) -> tuple[int, int]:
    """How many texts a file holds, and the number of the next row. ValueError for other rows."""
    if not path.exists():
        return 0, 0
    numbers = []
    for row, where in read_rows(path) if path.stat().st_size else ():
        found = _NAME.fullmatch(str(row.get("task_id", ""))) if isinstance(row, dict) else None
        if found is None:
            raise ValueError(f"{where}: not written by `dynatok gold`; choose another file")
        numbers.append(int(found[1]))
    return len(numbers), max(numbers, default=-1) + 1


def next_text(next_row: int, rewrites: int) -> int:
    """The number of the first text of which there is no row yet."""
    return -(-next_row // rewrites)


async def make(
    maker: Maker,
    wanted: int,
    begun: int,
    sessions: int,
    write: Write,
    keep: Callable[[dict[str, Any]], None],
    counts: Counter[str],
) -> None:
    """Ask for texts, `sessions` at once, until `wanted` are kept or patience is at its end."""
    numbers = count(begun)

    async def work() -> None:
        while counts["kept"] < wanted and counts["sampled"] < PATIENCE * wanted:
            number = next(numbers)
            counts["sampled"] += 1
            text = await write(maker.plain(number))
            for row in maker.rows(number, text):
                if isinstance(row, str):
                    counts[row] += 1
                elif counts["kept"] < wanted:
                    counts["kept"] += 1
                    keep(row)

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(work())


class Maker:
    """The plain task of each number, and the row that its text becomes."""

    def __init__(
        self, config: GoldConfig, rows: Sequence[tuple[TaskRow, str]], chat: Chat | None
    ) -> None:
        """ValueError for a row that cannot be asked plainly or whose texts no program rewrites."""
        self._config = config
        self._chat = chat
        chosen = [one for one in rows if split_of(one[0]) == config.split]
        if not chosen:
            raise ValueError(f"tasks: {config.tasks} has no row of the split {config.split!r}")
        self._rows: list[tuple[TaskRow, TaskRow]] = []
        # Rows that ask for the same text, by what they ask for; their names do not count.
        self._alike: dict[bytes, list[TaskRow]] = defaultdict(list)
        for row, where in chosen:
            try:
                task = make_task(row, seed=config.seed, chat=chat)
                for name in _requirements(row, task):
                    if not can_rewrite(name):
                        raise ValueError(
                            f"no program rewrites a text for {name!r}; `dynatok gold` can use "
                            "requirements that dynatok_online/requirements/rewrites.py lists"
                        )
                plain = plain_row(row)
                self._rows.append((row, plain))
                self._alike[_asked(plain)].append(row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None

    def _pair(self, number: int) -> tuple[TaskRow, TaskRow]:
        return self._rows[number % len(self._rows)]

    def plain(self, number: int) -> Task:
        """The task of a number without requirements."""
        _, row = self._pair(number)
        return make_task(row, seed=self._config.seed, epoch=number, chat=self._chat)

    def rows(self, number: int, text: str) -> Iterator[dict[str, Any] | str]:
        """Rows with gold responses of text `number`; see `row`."""
        several = self._config.rewrites
        first, plain = self._pair(number)
        alike = self._alike[_asked(plain)]
        for i in range(several):
            row = first if several == 1 else alike[(number + i) % len(alike)]
            yield self.row(row, several * number + i, text)

    def row(self, row: TaskRow, number: int, text: str) -> dict[str, Any] | str:
        """The row with its gold response; else why there is none: `short` or `unfit`."""
        rng = random.Random(f"gold/{self._config.seed}/{number}")
        task = self._task(row, number, rng)
        changes = [(one.slot, one.state) for one in task.edits]
        changes += [(one.slot, one.state) for one in task.rules]
        text = tidy(text, rng.randint(*self._config.words))
        least = self._config.least_words
        words = len(text.split())
        # A short text takes fewer edits, but at least one if it is to have any.
        edits = min(len(changes), words // least - 1)
        if words < least or edits < min(1, len(changes)):
            return "short"
        left = iter(changes)
        segments = rewritten(
            text, task.states, lambda live: next(left), rng, edits=edits, least_words=least
        )
        if segments is None:
            return "unfit"
        found: dict[str, Any] = {
            "task_id": f"gold-{number}",
            "messages": row.messages,
            "prompt": row.prompt,
            "control_tokens": row.control_tokens,
            "response": msgspec.to_builtins(segments),
            "widths": row.widths,
            "split": self._config.split,
        }
        return {name: value for name, value in found.items() if value}

    def _task(self, row: TaskRow, number: int, rng: random.Random) -> Task:
        """The row's task with its edits, begun in any of its states."""
        shuffled = {
            slot: rng.sample(states, len(states)) if isinstance(states, list) else states
            for slot, states in row.slots.items()
        }
        seed, chat = self._config.seed, self._chat
        begun = msgspec.structs.replace(row, slots=shuffled)
        try:
            return make_task(begun, seed=seed, epoch=number, chat=chat)
        except ValueError:  # states that contradict each other, or its edits
            return make_task(row, seed=seed, epoch=number, chat=chat)


def _asked(plain: TaskRow) -> bytes:
    return msgspec.json.encode((plain.prompt, plain.messages))


def _requirements(row: TaskRow, task: Task) -> Iterator[str]:
    """Names of the requirements that a row's texts may have to satisfy."""
    for states in row.slots.values():
        for state in states if isinstance(states, list) else [states]:
            name = state if isinstance(state, str) else state.requirement
            if name:
                yield name
    yield from (one.requirement for _, one in task.all_states() if one.requirement)
