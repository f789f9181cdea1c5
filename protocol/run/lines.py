"""A file of lines that many processes of a run append to, whole line by whole line."""

from __future__ import annotations

import os
from pathlib import Path


class LineFile:
    """Each line is one write with `O_APPEND`: lines of different processes never mix.

    A full disk costs lines, never the process: they are counted in `lost`.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd: int | None = os.open(path, flags, 0o644)
        self._torn = False
        self.lost = 0
        """Lines that could not be written."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd is None

    def append(self, line: bytes) -> None:
        """Append `line`, which has no newline. After `close`, nothing."""
        if self._fd is None:
            return
        data = (b"\n" if self._torn else b"") + line + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            # What is there of it must not be read as the beginning of the next line.
            self._torn = self._torn or written > 0
            self.lost += 1
        else:
            self._torn = False

    def close(self) -> None:
        """Close the file. Calling it twice does no harm."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
