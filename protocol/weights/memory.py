"""Files in memory that end with the process that made them.

Their maker holds a lock on them for as long as it lives, and the kernel drops the lock when it
dies; a file without a lock is left over from a killed process, and is removed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final

PREFIX: Final = "dynatok-"
"""How the names of our files in memory start."""


def memory_folder() -> Path:
    """Where files live in memory, if this system has such a place."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def locked_file(kind: str) -> tuple[int, Path]:
    """A new empty file of this process: its descriptor, which holds the lock, and its path.

    The lock comes before a name that `remove_leftovers` looks at: another process never sees the
    file unlocked.
    """
    fd, unseen = tempfile.mkstemp(prefix=f".{PREFIX}", dir=memory_folder())
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = memory_folder() / f"{PREFIX}.{kind}-{Path(unseen).name.removeprefix('.' + PREFIX)}"
        os.rename(unseen, path)
    except BaseException:
        os.unlink(unseen)
        os.close(fd)
        raise
    return fd, path


def remove_leftovers() -> list[Path]:
    """Remove files in memory whose owner died; the paths that were removed."""
    removed = []
    for path in memory_folder().glob(f"{PREFIX}*"):
        try:
            if path.stat().st_uid != os.getuid() or not path.is_file() or path.is_symlink():
                continue
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # gone in the meantime, or not ours
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(fd).st_ino:
                path.unlink()
                removed.append(path)
        except OSError:  # locked: its writer lives
            pass
        finally:
            os.close(fd)
    return removed
