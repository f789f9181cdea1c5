"""An append-only log on disk: what was committed is there after any crash, in order, once.

A journal is a folder of segments, each named after the index of its first record. Records have
ascending indices, never used twice. A record is

    4 bytes   magic: a record, or the head of a segment
    4         length of the payload
    8         index
    8         xxh3 of length, index and payload
              payload

`append` writes, `commit` makes everything appended so far durable with one fsync (group
commit). A torn last record, the trace of a crash, is cut off when the journal is opened.
Damage elsewhere is stepped over to the next sound record, and counted. Space comes back by
whole segments: `release` deletes those whose records are no longer needed.

The head of a segment is what its owner needs to know about everything before it, because
what was before it may be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from protocol.wire.envelope import Buffer

_RECORD: Final = b"\xd7jr1"
_HEAD: Final = b"\xd7jh1"
_HEADER: Final = struct.Struct("<4sIQQ")
_SIGNED: Final = struct.Struct("<IQ")
_SUFFIX: Final = ".journal"
_sync: Final = getattr(os, "fdatasync", os.fsync)


class JournalFull(OSError):
    """There is no room: the journal's own limit, or the disk. Nothing was written."""


class _Found(NamedTuple):
    magic: bytes
    number: int
    payload: bytes
    start: int
    stop: int


class Journal:
    """One folder, one process. Not thread-safe, except that `commit` may run beside `append`."""

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = 64 * 2**20,
        max_bytes: int = 8 * 2**30,
        max_record_bytes: int = 64 * 2**20,
        head: Callable[[], bytes] = bytes,
    ) -> None:
        """Open or create. Raises ValueError where another process has it open.

        `max_record_bytes` limits what is appended; what is there is read whatever its length.
        Segments are at most an eighth of `max_bytes`, or too little could be released at a time.
        """
        self.folder = folder
        self.torn_bytes = 0
        """Bytes of a torn last record that were cut off when opening."""
        self.damaged = 0
        """Places where bytes were stepped over, among the records read so far."""
        self.missing = 0
        """Indices that should have been there, among the records read so far."""
        self._segment_bytes = min(segment_bytes, max_bytes // 8)
        self._max_bytes = max_bytes
        self._max_record_bytes = max_record_bytes
        self._head = head
        self._syncing = threading.Lock()
        self._doomed: deque[Path] = deque()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ValueError(f"the journal {folder} is in use by another process") from error
        self._segments: dict[int, int] = {}
        """First index -> bytes, ascending."""
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            if path.stem.isdecimal():
                self._segments[int(path.stem)] = path.stat().st_size
        self.next_index = 0
        self._file = -1
        self._at = 0
        try:
            if self._segments:
                self._open_last()
            else:
                self._start_segment()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def first_index(self) -> int:
        """Index of the oldest record that is still kept."""
        return next(iter(self._segments))

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(self._segments.values())

    @property
    def max_bytes(self) -> int:
        """Its limit on disk."""
        return self._max_bytes

    def releasable(self, index: int) -> int:
        """Bytes that `release(index)` would free."""
        firsts = itertools.pairwise(list(self._segments))
        return sum(self._segments[first] for first, following in firsts if following <= index)

    def append(self, payload: Buffer) -> int:
        """Write a record and return its index. Raises `JournalFull`."""
        view = memoryview(payload)
        size = _HEADER.size + view.nbytes
        if view.nbytes > self._max_record_bytes:
            raise ValueError(
                f"a record of {view.nbytes} bytes is longer than the journal's limit of "
                f"{self._max_record_bytes}"
            )
        if self.nbytes + size > self._max_bytes:
            raise JournalFull(
                f"the journal {self.folder} has {self.nbytes} bytes, and its limit is "
                f"{self._max_bytes}"
            )
        if self._at and self._at + size > self._segment_bytes:
            self._start_segment()
        self._at = self._write(self._file, self._at, _RECORD, self.next_index, view)
        self._segments[next(reversed(self._segments))] = self._at
        self.next_index += 1
        return self.next_index - 1

    def commit(self) -> None:
        """Everything appended so far is on disk, and everything released deleted, on return."""
        with self._syncing:
            _sync(self._file)
        while self._doomed:
            # Deleting takes milliseconds; here it may be in another thread than `append`.
            self._doomed.popleft().unlink(missing_ok=True)

    def head(self) -> bytes:
        """The head of the oldest segment that is kept (empty where it was lost)."""
        for found in self._scan(self.first_index):
            return found.payload if found.magic == _HEAD else b""
        return b""

    def records(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(index, payload) from `start` on, ascending. Raises OSError where the disk fails."""
        expected = max(start, self.first_index)
        firsts = list(self._segments)
        for number, first in enumerate(firsts):
            if number + 1 < len(firsts) and firsts[number + 1] <= start:
                continue
            for found in self._scan(first):
                if found.magic == _RECORD and found.number >= expected:
                    self.missing += found.number - expected
                    expected = found.number + 1
                    yield found.number, found.payload

    def release(self, index: int) -> int:
        """Records below `index` are not needed: bytes that come back with the next `commit`."""
        freed = 0
        firsts = list(self._segments)
        for first, following in itertools.pairwise(firsts):
            if following > index:
                break
            self._doomed.append(self._path(first))
            freed += self._segments.pop(first)
        return freed

    def close(self) -> None:
        """Make everything durable and let others open it."""
        if self._file < 0:
            return
        self.commit()
        os.close(self._file)
        os.close(self._lock)
        self._file = -1

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:020d}{_SUFFIX}"

    def _open_last(self) -> None:
        first = next(reversed(self._segments))
        end = 0
        self.next_index = first
        for found in self._scan(first):
            end = found.stop
            if found.magic == _RECORD:
                self.next_index = max(self.next_index, found.number + 1)
        self.damaged = 0  # counted again by whoever reads
        self._file = os.open(self._path(first), os.O_RDWR | os.O_CLOEXEC)
        self.torn_bytes = self._segments[first] - end
        if self.torn_bytes:
            os.ftruncate(self._file, end)
            _sync(self._file)
        os.lseek(self._file, end, os.SEEK_SET)
        self._at = self._segments[first] = end

    def _start_segment(self) -> None:
        # The new segment is complete, head and all, before it takes the place of the old one.
        first = self.next_index
        fd = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(self._path(first), flags, 0o600)
            size = self._write(fd, 0, _HEAD, first, memoryview(self._head()))
            _sync(fd)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                self._path(first).unlink(missing_ok=True)
            raise JournalFull(f"cannot write to {self.folder}: {error}") from error
        with self._syncing:
            if self._file >= 0:
                _sync(self._file)
                os.close(self._file)
            self._file = fd
        self._at = self._segments[first] = size

    def _write(self, fd: int, at: int, magic: bytes, index: int, payload: memoryview) -> int:
        signed = _SIGNED.pack(payload.nbytes, index)
        hashed = xxhash.xxh3_64(signed)
        hashed.update(payload)
        header = _HEADER.pack(magic, payload.nbytes, index, hashed.intdigest())
        size = _HEADER.size + payload.nbytes
        try:
            written = os.writev(fd, [header, payload])
            while written < size:  # a disk that fills up writes a part first
                rest = memoryview(header + bytes(payload))[written:]
                written += os.write(fd, rest)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, at)
                os.lseek(fd, at, os.SEEK_SET)
            raise JournalFull(f"cannot write to {self.folder}: {error.strerror}") from error
        return at + size

    def _scan(self, first: int) -> Iterator[_Found]:
        data = self._path(first).read_bytes()
        at = 0
        while at < len(data):
            found = self._parse(data, at)
            if found is None:
                following = self._resynchronise(data, at + 1)
                if following is None:
                    self.damaged += 1
                    return
                self.damaged += 1
                found = following
            at = found.stop
            yield found

    def _resynchronise(self, data: bytes, at: int) -> _Found | None:
        while (at := data.find(_RECORD, at)) >= 0:
            found = self._parse(data, at)
            if found is not None:
                return found
            at += 1
        return None

    def _parse(self, data: bytes, at: int) -> _Found | None:
        start = at + _HEADER.size
        if start > len(data):
            return None
        magic, length, index, checksum = _HEADER.unpack_from(data, at)
        stop = start + length
        if magic not in (_RECORD, _HEAD) or stop > len(data):
            return None
        hashed = xxhash.xxh3_64(_SIGNED.pack(length, index))
        payload = data[start:stop]
        hashed.update(payload)
        if hashed.intdigest() != checksum:
            return None
        return _Found(magic, index, payload, at, stop)
