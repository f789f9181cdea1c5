"""Arms and seeds one after the other, or several at once in processes that share the device.

A process is asked for one (arm, seed) a line on its standard input, and answers with raw results, a
line each, and one that says that it has no more. What libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

Unit = tuple[str, int]
"""An arm and a seed."""
Line = dict[str, Any]
Emit = Callable[[Line], None]
Measure = Callable[[str, int, float], None]
"""arm, seed, deadline (`time.monotonic`)."""

IDLE: Line = {"kind": "idle"}


class Todo:
    """What is to run, in its order; nothing is begun that would end after `minutes`.

    How long something takes is what the longest of its `kind` took so far. Threads may share it.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        minutes: float | None = None,
        kind: Callable[[str], object] = lambda arm: None,
    ) -> None:
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.left: list[Unit] = []
        """What there was no time for."""
        self._kind = kind
        self._longest: dict[object, float] = {}
        self._waiting: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        for one in units:
            self._waiting.put(one)

    def __iter__(self) -> Iterator[Unit]:
        while True:
            try:
                unit = self._waiting.get_nowait()
            except queue.Empty:
                return
            kind, began = self._kind(unit[0]), time.monotonic()
            if began + self._longest.get(kind, 0.0) > self.deadline:
                self.left.append(unit)
                continue
            yield unit
            took = time.monotonic() - began
            self._longest[kind] = max(self._longest.get(kind, 0.0), took)


def bars() -> Progress:
    """Progress of several things at once, and how long each has taken."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        refresh_per_second=2,
    )


def in_processes(command: Sequence[str], todo: Todo, jobs: int, emit: Emit) -> None:
    """Run `todo` in so many processes of `command`, each the other end of `answer`.

    A process that ends costs what it was at; what else there is goes on without it, and then
    SystemExit says so.
    """
    lock = threading.Lock()
    problems: list[BaseException] = []

    def safe(line: Line) -> None:
        with lock:
            emit(line)

    def serve() -> None:
        try:
            _ask(command, todo, safe)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def _ask(command: Sequence[str], todo: Todo, emit: Emit) -> None:
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for unit in todo:
            left = todo.deadline - time.monotonic()
            try:
                child.stdin.write(
                    json.dumps([*unit, None if left == float("inf") else left]) + "\n"
                )
                child.stdin.flush()
            except BrokenPipeError:
                raise _ended(unit) from None
            for text in child.stdout:
                line = json.loads(text)
                if line == IDLE:
                    break
                emit(line)
            else:
                raise _ended(unit)
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        code = child.wait(timeout=30)
    if code:
        raise SystemExit(f"a process ended with exit code {code}")


def _ended(unit: Unit) -> SystemExit:
    return SystemExit(f"the process that measured {unit} ended: see its message above")


def answer(begin: Callable[[Emit], Measure]) -> int:
    """The other end: `begin` gets where results go, and returns what measures an arm and a seed."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(line: Line) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    measure = begin(emit)
    for text in sys.stdin:
        arm, seed, left = json.loads(text)
        measure(arm, seed, float("inf") if left is None else time.monotonic() + left)
        emit(IDLE)
    return 0
