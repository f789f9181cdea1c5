"""A file of lines that several processes append to, through times when the disk is full.

Each line is appended with a single write to a file opened with `O_APPEND`, so lines of different
processes never mix. While there is no room, lines wait in memory: numbers and traces are for
people, and must not end what they tell of. A line that was cut off by a full disk is written
once more, whole; readers skip its beginning, which is no JSON.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Final

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class LineFile:
    """The end that one process appends to. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open the file, and its folder; both are made where they are missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd: int | None = os.open(path, flags, 0o644)
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd is None

    def append(self, line: bytes) -> None:
        """Write one line, and what waits before it; after `close`, nothing."""
        with self._lock:
            if self._fd is not None:
                self._waiting.append(line + b"\n")
                self._write(self._fd)

    def _write(self, fd: int) -> None:
        while self._waiting:
            # Whoever cut a line off, this process or another: it ends here.
            data = (b"\n" if _torn(fd) else b"") + self._waiting[0]
            try:
                written = os.write(fd, data)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                return
            if written < len(data):
                return
            self._waiting.popleft()

    def close(self) -> None:
        """Write what waits, if there is room now, and close. Calling it twice does no harm."""
        with self._lock:
            if self._fd is None:
                return
            self._write(self._fd)
            os.close(self._fd)
            self._fd = None
        if self._waiting:
            text = f"{len(self._waiting)} lines for {self._path} are lost: the disk is full"
            print(text, file=sys.stderr, flush=True)


def _torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
