"""A process that was told to stop ends within seconds, whatever it is doing."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

GRACE = 4.0
"""Seconds between a signal and the end of the process."""


_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends: even by kill -9.

    Linux. Call it from the main thread, as early as possible.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def end_within_grace(
    code: int,
    over: threading.Event | None = None,
    last: Callable[[], None] = lambda: None,
    seconds: float = GRACE,
) -> None:
    """End the process with `code` after so many seconds, unless `over` is set before.

    A library may be starting processes, compiling, or ignoring signals: then `last` is called,
    child processes are killed, and the process is gone. Returns at once; safe in a signal handler.
    """
    watch = threading.Thread(
        target=_end,
        args=(code, over or threading.Event(), last, seconds),
        name="grace",
        daemon=True,
    )
    watch.start()


def _end(code: int, over: threading.Event, last: Callable[[], None], seconds: float) -> None:
    if over.wait(seconds):
        return
    try:
        text = f"still busy {seconds:g} s after the signal: ending at once"
        print(text, file=sys.stderr, flush=True)
        last()
    finally:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)
