"""Starts the processes of a run, watches them, and leaves nothing behind.

A run ends in one of four ways: every child exits 0 (`finished`); a signal asks for the end
(`interrupted`); a child fails, or the time limit is reached (`failed`). In each of them all
processes of the run are gone within ten seconds, and `result.json` is written. Where the
supervisor itself is killed, the janitor does the clearing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from launch import process, result
from launch.janitor import Janitor

PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL; with the killing itself, less than ten."""
ENDING = 900.0
"""Seconds that the others may take to finish once the first child has ended well."""
INTERVAL = 0.2
"""Seconds between two looks at the children."""


class Command(msgspec.Struct, frozen=True):
    """A process to start."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]


class Display(Protocol):
    """Shows how the run goes; called a few times a second."""

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """`state`: child name -> `running` or how it ended."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Nothing more follows."""


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended."""

    status: str
    """`finished`, `interrupted` or `failed`."""
    code: int
    """Exit code for the shell."""
    message: str
    """For people; empty where all is well."""
    seconds: float


class _Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted instead of obeyed."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.count = 0

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._note) for number in self._NUMBERS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.count += 1


def supervise(
    run_dir: Path,
    commands: Sequence[Command],
    display: Display,
    *,
    time_limit: float = 0.0,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run `commands` until all have ended, one has failed, or a signal or the limit comes."""
    started = clock()
    segments: set[Path] = set()
    children: list[process.Child] = []
    with _Signals() as signals:
        janitor = Janitor()
        try:
            for command in commands:
                log = run_dir / "logs" / f"{command.name}.log"
                child = process.Child(command.name, command.argv, command.env, log)
                janitor.watch(child.pid)
                children.append(child)
            end = _watch(children, signals, display, janitor, segments, started, time_limit, clock)
        finally:
            if signals.received is not None:
                display.say("stopping; Ctrl-C again kills")
            begun = signals.count
            process.stop(
                [child.pid for child in children],
                patience,
                segments,
                hurry=lambda: signals.count > begun,
            )
            for child in children:
                child.poll()
            janitor.dismiss()
            display.close()
    status, code, message = end
    if status == "finished" and result.read_json(run_dir / "learner.json").get("finished") is False:
        log = run_dir / "logs" / "learner.log"
        status, code, message = "failed", 1, f"the learner ended before its last step; log: {log}"
    seconds = clock() - started
    result.write(run_dir, result.collect(run_dir, status, seconds))
    return Outcome(status, code, message, seconds)


def _watch(
    children: Sequence[process.Child],
    signals: _Signals,
    display: Display,
    janitor: Janitor,
    segments: set[Path],
    started: float,
    time_limit: float,
    clock: Callable[[], float],
) -> tuple[str, int, str]:
    """(status, exit code, message) once the run is over; the children may still be alive."""
    ending: float | None = None
    next_scan = started
    while True:
        now = clock()
        codes = {child.name: child.poll() for child in children}
        for child in children:
            code = codes[child.name]
            if code:
                # 2: the child refused what it was asked to do, and its last line says why.
                return "failed", 2 if code == 2 else 1, _epitaph(child, code)
        running = [child for child in children if codes[child.name] is None]
        if not running:
            return "finished", 0, ""
        if signals.received is not None:
            name = signals.received.name
            return "interrupted", 128 + signals.received, f"stopped by {name}"
        if time_limit and now - started > time_limit:
            return "failed", 1, f"time limit of {time_limit:g} s reached" + _logs(running)
        if len(running) < len(children):
            ending = ending or now + ENDING
            if now > ending:
                return "failed", 1, "the others have ended, but " + _logs(running).lstrip("; ")
        if now >= next_scan:  # what is mapped now can be removed after a kill -9
            segments |= process.shared_memory(process.members([child.pid for child in children]))
            janitor.remember(segments)
            next_scan = now + 2.0
        state = {
            name: "running" if code is None else process.describe_exit(code)
            for name, code in codes.items()
        }
        display.update(state, now - started)
        time.sleep(INTERVAL)


def _epitaph(child: process.Child, code: int) -> str:
    words = child.last_words(1 if code == 2 else 12)
    end = f"{child.name} (pid {child.pid}) {process.describe_exit(code)}; log: {child.log}"
    if not words:
        return f"{end} (empty)"
    if code == 2:
        return f"{words} (log: {child.log})"
    quoted = "\n".join(f"  | {line}" for line in words.splitlines())
    return f"{end}; its last words:\n{quoted}"


def _logs(running: Sequence[process.Child]) -> str:
    return "; still running: " + ", ".join(f"{c.name} (log: {c.log})" for c in running)
