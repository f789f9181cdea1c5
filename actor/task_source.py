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
from pathlib import Path
from typing import Any

import msgspec
import yaml

from dynatok_online.data.storage import SUFFIXES, OnBad, read_rows
from dynatok_online.tasks.files import Chat, Split, TaskRow, make_task, read_row, tasks_of
from dynatok_online.tasks.task import Task

_TINY = re.compile(r"tiny(?::([0-9]+)-([0-9]+))?")
_COLUMN = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")
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
    if _is_python(source) and isinstance(next(iter(_imported(source)), None), Task):
        return _endless(source)
    rows = list(_rows(source, on_bad))
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


def _rows(source: str, on_bad: OnBad | None) -> Iterator[tuple[TaskRow, str]]:
    """(row, where it stands) of any source but `tiny`."""
    given: Description | None = None
    if source.endswith((".yaml", ".yml")):
        given = _description(Path(source))
        source = given.source
    names: set[str] = set()
    stem = source.rpartition(":")[2] if _is_python(source) else Path(source).stem
    for number, (raw, where) in enumerate(_raw_rows(source, given, on_bad), 1):
        if given is not None and given.limit is not None and number > given.limit:
            return
        try:
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
    source: str, given: Description | None, on_bad: OnBad | None
) -> Iterable[tuple[Any, str]]:
    if source.startswith("hub:"):
        import datasets

        split = "train" if given is None else given.hub_split
        data = datasets.load_dataset(source.removeprefix("hub:"), split=split)
        return ((row, f"{source}, row {i}") for i, row in enumerate(data, 1))
    if Path(source).exists() or source.endswith(SUFFIXES):
        return read_rows(source, on_bad)
    if _is_python(source):
        return ((row, f"{source}, item {i}") for i, row in enumerate(_imported(source), 1))
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
            return str(raw[match[1]]).replace("{{", "{ {").replace("}}", "} }")

        row["prompt"] = _COLUMN.sub(column, given.template)
    own = {"slots": given.slots, "max_tokens": given.max_tokens}
    if given.schedule is not None and "edits" not in row:
        own["schedule"] = given.schedule
    return own | row


def _description(path: Path) -> Description:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), Description)
    except FileNotFoundError:
        raise ValueError(f"tasks: {path}: no such file") from None
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"tasks: {path}: {' '.join(str(error).split())}") from None


def _is_python(source: str) -> bool:
    return ":" in source and not source.startswith("hub:") and not Path(source).exists()


def _imported(source: str) -> Iterable[Any]:
    """What `package.module:name` names; functions are called. The working folder is looked in."""
    module, _, name = source.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"tasks: {source!r} cannot be imported: {error}") from None
    made: Iterable[Any] = found() if callable(found) else found
    return made


def _endless(source: str) -> Iterator[Task]:
    """The tasks of an iterable; where it ends, what it gives when it is asked again, renamed."""
    epoch = 0
    while True:
        for task in _imported(source):
            name = task.task_id if epoch == 0 else f"{task.task_id}@{epoch}"
            yield msgspec.structs.replace(task, task_id=name)
        epoch += 1
