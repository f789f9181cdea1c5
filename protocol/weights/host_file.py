"""What all processes of a run on this host need is fetched by one of them, into a file in memory.

The first to lock a file under a name that is made from the run and from what is wanted fills it;
the others look at it grow, and open it once it stands under its final name. The kernel drops the
lock of a process that dies, and whoever gets it next begins anew. Readers hold a shared lock, so
`memory.remove_leftovers` leaves the file alone; the last to let go of it removes it. A name that is
gone harms nobody: each reader has a descriptor of its own.

Such names can be guessed. A file of another user, one that others can write or read, a link: none
is opened, and this process makes a file of its own, without a name. The same where whoever fills
it does not get on. Nothing here proves what is in a file: every reader checks the hashes, because
that costs less than to ask who else has done it, and damage in memory is found, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.weights.base import Progress, WeightsError
from protocol.weights.memory import PREFIX, locked_file, memory_folder

Fill = Callable[[int], None]
"""Writes the bytes to a descriptor, from the first to the last."""
_LOOK_SECONDS: Final = 0.02


class _NotOurs(Exception):
    """What has the name cannot be trusted."""


class HostFile:
    """A file that is complete, and stays readable until `delete`."""

    def __init__(self, fd: int, name: Path | None, filled: bool = False) -> None:
        """`name`: where other processes find it; None: it is of this process alone."""
        self._fd = fd
        self._name = name
        self.nbytes = os.fstat(fd).st_size
        self.filled = filled
        """Whether this process has filled it."""

    @property
    def path(self) -> Path:
        """Where any process of this user can open this very file, whatever has its name now."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def view(self) -> memoryview:
        """Its bytes, mapped read-only; they stay readable after `delete`."""
        if not self.nbytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._fd, self.nbytes, prot=mmap.PROT_READ))

    def discard(self) -> None:
        """Its bytes are wrong: nobody else is to open it."""
        if self._name is not None and _is_at(self._fd, self._name):
            self._name.unlink(missing_ok=True)
        self.delete()

    def delete(self) -> None:
        """Let go of it; the memory is freed with the last view of the last process."""
        if self._name is not None:
            # The lock is lost where others have theirs, which is what closing does, too.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._fd, self._name):
                    self._name.unlink()
        os.close(self._fd)


def fetch_once(
    key: str, nbytes: int, fill: Fill, progress: Progress, deadline_seconds: float
) -> HostFile:
    """The file of `nbytes` that `key` (letters and digits) stands for on this host.

    `fill` is called where no other process has it or is about to. `deadline_seconds`: so long it
    may grow by nothing while another one fills it. Raises `WeightsError`, and what `fill` raises.
    """
    ready = memory_folder() / f"{PREFIX}.host-{key}"
    growing = memory_folder() / f"{PREFIX}.growing-{key}"
    size, since = -1, time.monotonic()
    try:
        while time.monotonic() - since <= deadline_seconds:
            fd = _open(ready, os.O_RDONLY)
            if fd is not None and _locked(fd, fcntl.LOCK_SH):
                return HostFile(fd, ready)
            fd = _open(growing, os.O_RDWR | os.O_CREAT) if fd is None else None
            if fd is not None and _locked(fd, fcntl.LOCK_EX):
                if _is_at(fd, growing) and not ready.exists():
                    return _fill(fd, growing, ready, nbytes, fill)
                # Finished, or given up, while it was opened here.
                if _is_at(fd, growing):
                    growing.unlink()
                os.close(fd)
            grown = _size(growing)
            progress.add(max(0, grown - size) if size >= 0 else 0)
            if grown != size:
                size, since = grown, time.monotonic()
            time.sleep(_LOOK_SECONDS)
    except _NotOurs:
        pass
    return _alone(nbytes, fill)


def _fill(fd: int, growing: Path, ready: Path, nbytes: int, fill: Fill) -> HostFile:
    """Fill the file that this process has locked, and let the others have it."""
    try:
        os.ftruncate(fd, 0)
        _call(fill, fd, nbytes)
        os.rename(growing, ready)
    except BaseException:
        growing.unlink(missing_ok=True)
        os.close(fd)
        raise
    fcntl.flock(fd, fcntl.LOCK_SH)
    return HostFile(fd, ready, filled=True)


def _alone(nbytes: int, fill: Fill) -> HostFile:
    fd, path = locked_file("fetched")
    path.unlink()
    try:
        _call(fill, fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return HostFile(fd, None, filled=True)


def _call(fill: Fill, fd: int, nbytes: int) -> None:
    try:
        fill(fd)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise WeightsError(
            f"no room for {nbytes / 2**20:.0f} MiB of weights in {memory_folder()}"
        ) from error
    if os.fstat(fd).st_size != nbytes:
        raise WeightsError(f"{os.fstat(fd).st_size} bytes of weights came instead of {nbytes}")


def _open(path: Path, flags: int) -> int | None:
    """A descriptor of a file of this user alone; None: there is none. Raises `_NotOurs`."""
    try:
        # Not blocking: what has the name may be a pipe.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _NotOurs from error
    found = os.fstat(fd)
    mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077 and found.st_nlink <= 1
    if not mine or not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise _NotOurs
    return fd


def _locked(fd: int, how: int) -> bool:
    """Whether the lock is ours now; the descriptor is closed where it is not."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the file still has this name."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return -1
