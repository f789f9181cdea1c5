"""Ends the children of a supervisor that died without doing so.

Started by the supervisor, in a session of its own, with a pipe on standard input. The supervisor
writes what there is to clean up, one item a line: `session PID`, `memory PATH`. The pipe closes
when the supervisor ends, whatever ended it, kill -9 included; what was written and not taken
back by `done` is then stopped and removed.

    python -m launch.janitor
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from launch import process

PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class Janitor:
    """The supervisor's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.janitor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
        )
        self._told: set[str] = set()

    def watch(self, session: int) -> None:
        """Stop this session's processes if the supervisor dies."""
        self._tell(f"session {session}")

    def remember(self, segments: Iterable[Path]) -> None:
        """Remove this shared memory if the supervisor dies."""
        for path in segments:
            self._tell(f"memory {path}")

    def _tell(self, line: str) -> None:
        if line in self._told or self._process.stdin is None:
            return
        self._told.add(line)
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # somebody killed it: the run continues without
            pass

    def dismiss(self) -> None:
        """Everything was cleaned up: end without doing anything."""
        self._tell("done")
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Collect what the supervisor says until it is gone, then clean up."""
    sessions: list[int] = []
    segments: list[Path] = []
    for line in sys.stdin:
        kind, _, value = line.rstrip("\n").partition(" ")
        if kind == "done":
            return
        if kind == "session":
            sessions.append(int(value))
        elif kind == "memory":
            segments.append(Path(value))
    process.stop(sessions, PATIENCE, segments)


if __name__ == "__main__":
    main()
