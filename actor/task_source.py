"""Where the actor's tasks come from. A source is one string:

    tiny                 the embedded world; tiny:2-3 with two to three edits a response
    tasks.jsonl          a file of task rows (see `dynatok_online.tasks.files`), or a folder of them
    package.module:name  a Python function, or any iterable, of rows or of `Task` objects
    hub:owner/name       a data set of the Hugging Face hub, or hub:FOLDER
    tasks.yaml           a description: where rows come from, and what they lack

A description adds fields to rows that do not have them, and may write their prompt from columns:

    source: hub:owner/questions
    template: "{question}\\nStyle: {{case}}\\nAnswer: "
    slots: {case: [upper, lower]}
    schedule: {rule: random, edits: [1, 2]}
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import yaml

from dynatok_online.data.storage import SUFFIXES, OnBad, read_rows
from dynatok_online.prompt import escaped, literal
from dynatok_online.requirements import refuse_code
from dynatok_online.tasks.files import Chat, Split, TaskRow, make_task, read_row, tasks_of
from dynatok_online.tasks.task import Task

_TINY = re.compile(r"tiny(?::([0-9]+)-([0-9]+))?")
_COLUMN = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")
MOST_ROWS = 1_000_000
"""Most rows of one source: they are all held and checked before the first task."""
_FIELDS = frozenset(TaskRow.__struct_fields__)


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A YAML file that says where rows come from and what they lack."""

    source: str
    hub_split: str = "train"
    template: str = ""
    limit: int | None = None
    slots: dict[str, Any] = {}
    schedule: dict[str, Any] | None = None
    max_tokens: int = 128
    control_tokens: bool = False
    """Whether names of control tokens in the template are control tokens; in columns they never
    are."""
    widths: dict[str, int] = {}


def task_rows(source: str, on_bad: OnBad | None = None) -> list[tuple[TaskRow, str]]:
    """(row, where it stands) of a source. ValueError as `tasks`, and for one that has no rows."""
    if _TINY.fullmatch(source):
        raise ValueError(f"tasks: {source!r} gives no rows; name a file, module:name or hub:NAME")
    made = list(_Asked(source).items()) if _is_python(source) else None
    if any(isinstance(one, Task) for one in made or ()):
        raise ValueError(f"tasks: {source} gives Task objects; rows are needed here")
    rows = list(_rows(source, on_bad, made))
    if not rows:
        raise ValueError(f"tasks: {source} holds no usable row")
    return rows


def tasks(
    source: str,
    split: Split,
    seed: int,
    *,
    chat: Callable[[], Chat] | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[Task]:
    """Tasks of `source` without end.

    `chat` gives what turns chat messages into a template; it is asked for once there are some.
    Raises ValueError that says what cannot be used and where it stands, before the first task;
    `on_bad` is told instead, and the row left out.
    """
    if embedded := _TINY.fullmatch(source):
        from dynatok_online.tiny import world

        least, most = (int(one) for one in embedded.groups(default="")) if embedded[1] else (1, 3)
        return world.tasks(split, seed=seed, edits=(least, most))
    made: Iterable[Any] | None = None
    if _is_python(source):
        asked = _Asked(source)
        first = next(items := asked.items(), None)
        if isinstance(first, Task):
            return _endless(asked, chain([first], items))
        made = () if first is None else chain([first], items)
    rows = list(_rows(source, on_bad, made))
    if not rows:
        raise ValueError(f"tasks: {source} holds no usable row")
    turn = chat() if chat is not None and any(row.messages for row, _ in rows) else None
    good = []
    for row, where in rows:  # whatever is wrong is found before anything is started
        try:
            make_task(row, seed=seed, chat=turn)
        except ValueError as error:
            if on_bad is None:
                raise ValueError(f"{where}: {error}") from None
            on_bad(f"{where}: {error}")
        else:
            good.append((row, where))
    return tasks_of(good, split, seed=seed, chat=turn)


def repeated(tasks: Iterator[Task], times: int) -> Iterator[Task]:
    """Each task so many times in turn, under names of their own, which their draws depend on."""
    for task in tasks:
        for copy in range(1, times + 1):
            name = task.task_id if times == 1 else f"{task.task_id}.{copy}"
            yield msgspec.structs.replace(task, task_id=name)


def _rows(
    source: str, on_bad: OnBad | None, made: Iterable[Any] | None = None
) -> Iterator[tuple[TaskRow, str]]:
    """(row, where it stands) of any source but `tiny`; `made` is what a Python source gives."""
    given: Description | None = None
    if source.endswith((".yaml", ".yml")):
        given = _description(Path(source))
        source = given.source
    names: set[str] = set()
    stem = source.rpartition(":")[2] if _is_python(source) else Path(source).stem
    limit = None if given is None else given.limit
    for number, (raw, where) in enumerate(_raw_rows(source, given, on_bad, made), 1):
        if limit is not None and number > limit:
            return
        if number > MOST_ROWS:
            raise ValueError(
                f"tasks: {source} gives more than {MOST_ROWS:,} rows; is it without end? Write a "
                "description with a limit, or give Task objects, which are taken one by one"
            )
        try:
            if source.startswith("hub:"):
                refuse_code([raw.get(field) for field in ("slots", "edits")])
                if isinstance(gold := raw.get("response"), list):
                    refuse_code(gold)
            row = read_row(_completed(raw, given))
            name = row.task_id or f"{stem}-{number}"
            if name in names:
                raise ValueError(f"task_id {name!r} stands twice; give every row its own")
            names.add(name)
        except ValueError as error:
            if on_bad is None:
                raise ValueError(f"{where}: {error}") from None
            on_bad(f"{where}: {error}")
        else:
            yield msgspec.structs.replace(row, task_id=name), where


def _raw_rows(
    source: str, given: Description | None, on_bad: OnBad | None, made: Iterable[Any] | None
) -> Iterable[tuple[Any, str]]:
    if source.startswith("hub:"):
        import datasets

        split = "train" if given is None else given.hub_split
        data = datasets.load_dataset(source.removeprefix("hub:"), split=split)
        return ((row, f"{source}, row {i}") for i, row in enumerate(data, 1))
    if Path(source).exists() or source.endswith(SUFFIXES):
        return read_rows(source, on_bad)
    if _is_python(source):
        items = _Asked(source).items() if made is None else made
        return ((row, f"{source}, item {i}") for i, row in enumerate(items, 1))
    raise ValueError(
        f"tasks: {source!r} is no file; write 'tiny', a .jsonl or .yaml file, package.module:name "
        "or hub:owner/name"
    )


def _completed(raw: Any, given: Description | None) -> Any:
    if given is None or not isinstance(raw, dict):
        return raw
    row = {name: value for name, value in raw.items() if name in _FIELDS}
    if given.template:

        def column(match: re.Match[str]) -> str:
            if match[1] not in raw:
                raise ValueError(f"the template names column {match[1]!r}; there are {list(raw)}")
            text = str(raw[match[1]])
            return literal(text) if given.control_tokens else escaped(text)

        row["prompt"] = _COLUMN.sub(column, given.template)
    own = {
        "slots": given.slots,
        "max_tokens": given.max_tokens,
        "control_tokens": given.control_tokens,
        "widths": given.widths,
    }
    if given.schedule is not None and "edits" not in row:
        own["schedule"] = given.schedule
    return own | row


def _description(path: Path) -> Description:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8-sig")), Description)
    except FileNotFoundError:
        raise ValueError(f"tasks: {path}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"tasks: {path}: not UTF-8; save it as UTF-8") from None
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"tasks: {path}: {' '.join(str(error).split())}") from None


def _is_python(source: str) -> bool:
    return ":" in source and not source.startswith("hub:") and not Path(source).exists()


class _Asked:
    """What `package.module:name` names: a function, called each time, or any iterable."""

    def __init__(self, source: str) -> None:
        """The working folder is looked in, too."""
        self.source = source
        module, _, name = source.partition(":")
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            self._found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"tasks: {source!r} cannot be imported: {error}") from None

    @property
    def once(self) -> bool:
        """Whether it is an iterator, which gives what it holds a single time."""
        return isinstance(self._found, Iterator)

    def items(self) -> Iterator[Any]:
        """What it gives when it is asked."""
        made = self._found() if callable(self._found) else self._found
        if not isinstance(made, Iterable):
            raise ValueError(
                f"tasks: {self.source!r} gives {type(made).__name__}, not rows; write a function "
                "that gives rows or Task objects, or a list of them"
            )
        return iter(made)


def _endless(asked: _Asked, items: Iterator[Any]) -> Iterator[Task]:
    """The tasks of a source; where they end, what it gives when it is asked again, renamed."""
    epoch, held = 0, list[Task]()
    while True:
        count = 0
        for count, task in enumerate(items, 1):
            if not isinstance(task, Task):
                raise ValueError(
                    f"tasks: {asked.source}, item {count} is a {type(task).__name__}, though "
                    "those before it are Task objects; give one or the other"
                )
            if asked.once and epoch == 0:
                held.append(task)
            name = task.task_id if epoch == 0 else f"{task.task_id}@{epoch}"
            yield msgspec.structs.replace(task, task_id=name)
        if not count:
            raise ValueError(
                f"tasks: {asked.source} gave nothing when it was asked again; let the function "
                "make its tasks anew each time"
            )
        epoch += 1
        items = iter(held) if asked.once else asked.items()
