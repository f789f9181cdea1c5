"""The actor's log: lines for people."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """One line."""
    with contextlib.suppress(OSError):  # the log is on a full disk
        print(f"actor: {text}", file=sys.stderr, flush=True)
