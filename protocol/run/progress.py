"""The progress bar of every long command: how far it is, how long it will take, what it counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """What moves a progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def move(self, done: int, more: str = "") -> None:
        """`done` so far; `more` stands behind the time that is left."""
        self._progress.update(self._task, completed=done, more=more)

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def name(self, name: str) -> None:
        """What it is doing now."""
        self._progress.update(self._task, description=name)


@contextlib.contextmanager
def progress_bar(
    name: str, total: int, *, done: int = 0, more: str = "", shown: bool = True
) -> Iterator[Bar]:
    """A bar on stderr from `done` to `total`, while the body runs.

    >>> with progress_bar("train", 300) as bar:
    ...     bar.move(120, "loss 0.213")
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(progress, progress.add_task(name, total=total, completed=done, more=more))
