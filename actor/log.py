"""The actor's log: lines for people."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line."""
    print(f"actor: {text}", file=sys.stderr, flush=True)
