"""The learner's log: lines for people."""

from __future__ import annotations

import contextlib
import sys
import time


def say(text: str) -> None:
    """One line, with the time of day."""
    with contextlib.suppress(OSError):  # the log is on a full disk
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
