"""Weights through shared memory: a ring of preallocated buffers on one machine.

One file in /dev/shm, its name made from the run id: a page of header, then the slots. It is a
plain file and `mmap`, not `multiprocessing.shared_memory`, whose resource tracker (Python 3.11)
unlinks a segment when any process that merely attached to it exits. The writer reserves all
its pages at once, so a small /dev/shm is one clear error at the start and never a SIGBUS later.

The writer holds a lock on its file for as long as it lives, and the kernel drops the lock when
it dies; a file without a lock is left over from a killed run, and is removed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from protocol.envelope import check_name
from protocol.messages import Canary, WeightManifest
from protocol.slots import SlotLedger
from protocol.weights import (
    NoFreeSlot,
    Tensor,
    WeightReceiver,
    WeightSender,
    WeightsError,
    check_layout,
    slice_verified,
    write_all,
)

PREFIX: Final = "dynatok-"
"""How the names of our files in memory start."""
_PAGE: Final = 4096
_HEADER: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"DTWRING1"
_VERSION: Final = struct.Struct("<q")
_WRITING: Final = -1


def memory_folder() -> Path:
    """Where files live in memory, if this system has such a place."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def segment_path(run_id: str) -> Path:
    """Where the ring of a run lies."""
    return memory_folder() / f"{PREFIX}{check_name('run id', run_id)}"


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


class ShmSender(WeightSender):
    """The learner's end. `slot_bytes`: `weights.payload_bytes` of the model."""

    def __init__(self, run_id: str, slot_bytes: int, slots: int = 2) -> None:
        self._ledger = SlotLedger(slots)
        self._changed = threading.Condition()
        self._path = segment_path(run_id)
        self._slot_bytes = -(-max(slot_bytes, 1) // _PAGE) * _PAGE
        remove_leftovers()
        size = _PAGE + slots * self._slot_bytes
        self._fd = self._create(size)
        self._map = mmap.mmap(self._fd, size)
        self._view = memoryview(self._map)
        for slot in range(slots):
            self._mark(slot, _WRITING)
        _HEADER.pack_into(self._view, 0, _MAGIC, slots, self._slot_bytes)

    def _create(self, size: int) -> int:
        # The lock comes before the name: nobody may see this file unlocked and call it dead.
        fd, temporary = tempfile.mkstemp(prefix=PREFIX + ".new-", dir=self._path.parent)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(fd, 0, size)
            os.link(temporary, self._path)
        except FileExistsError:
            os.close(fd)
            raise ValueError(
                f"{self._path} is in use: another process publishes weights for this run; stop "
                "it, or start with another run id"
            ) from None
        except OSError as error:
            os.close(fd)
            if error.errno != errno.ENOSPC:
                raise
            free = os.statvfs(self._path.parent)
            raise ValueError(
                f"the weight ring needs {size / 2**20:.0f} MiB in {self._path.parent}, but only "
                f"{free.f_bavail * free.f_frsize / 2**20:.0f} MiB are free; enlarge it (docker: "
                "--shm-size) or choose another weight transport"
            ) from error
        finally:
            os.unlink(temporary)
        return fd

    def _mark(self, slot: int, version: int) -> None:
        _VERSION.pack_into(self._view, _HEADER.size + slot * _VERSION.size, version)

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
    ) -> WeightManifest:
        """Write into a free slot. Raises `NoFreeSlot` while readers hold them all."""
        with self._changed:
            slot = self._ledger.begin()
        self._mark(slot, _WRITING)
        start = _PAGE + slot * self._slot_bytes
        place = self._view[start : start + self._slot_bytes]

        def put(at: int, piece: memoryview) -> None:
            place[at : at + piece.nbytes] = piece

        specs, end = write_all(version, tensors, put, self._slot_bytes)
        place.release()
        self._mark(slot, version)
        with self._changed:
            self._ledger.commit(slot, version, readers)
        return WeightManifest(version, "shm", slot, end, specs, canary)

    def wait_free(self, timeout: float) -> None:
        """Wait until a version can be published. Raises `NoFreeSlot` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._ledger.free() is None:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    self._ledger.begin()  # raises, naming the readers
                    raise NoFreeSlot("unreachable")

    def joined(self, reader: str) -> None:
        with self._changed:
            self._ledger.joined(reader)

    def applied(self, reader: str, version: int) -> None:
        with self._changed:
            self._ledger.applied(reader, version)
            self._changed.notify_all()

    def rejected(self, reader: str, version: int) -> None:
        with self._changed:
            self._ledger.rejected(reader, version)
            self._changed.notify_all()

    def left(self, reader: str) -> None:
        with self._changed:
            self._ledger.left(reader)
            self._changed.notify_all()

    def close(self) -> None:
        """Unlink the ring. A reader that still maps it keeps its bytes."""
        if self._fd < 0:
            return
        self._view.release()
        self._map.close()
        self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


class ShmReceiver(WeightReceiver):
    """The actor's end: main process and engine workers alike. Attaches when first used.

    The place is made from the run id that this process was started with, never from a message.
    """

    def __init__(self, run_id: str) -> None:
        self._path = segment_path(run_id)
        self._identity: tuple[int, int] | None = None
        self._view: memoryview | None = None

    def read(self, manifest: WeightManifest, *, verify: bool = True) -> dict[str, Tensor]:
        """Views of the slot that the manifest names; nothing is copied."""
        if manifest.transport != "shm":
            raise WeightsError(
                f"weights {manifest.version} came by '{manifest.transport}', not shm"
            )
        view = self._attach()
        _, slots, slot_bytes = _HEADER.unpack_from(view)
        if not 0 <= manifest.slot < slots:
            raise WeightsError(f"weights {manifest.version}: slot {manifest.slot} of {slots}")
        check_layout(manifest, slot_bytes)
        start = _PAGE + manifest.slot * slot_bytes
        self._check_version(view, manifest)
        tensors = slice_verified(manifest, view[start : start + manifest.nbytes], verify=verify)
        self._check_version(view, manifest)
        return tensors

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The ring's file, and where the manifest's slot starts in it."""
        _, _, slot_bytes = _HEADER.unpack_from(self._attach())
        return self._path, _PAGE + manifest.slot * slot_bytes

    def _check_version(self, view: memoryview, manifest: WeightManifest) -> None:
        (found,) = _VERSION.unpack_from(view, _HEADER.size + manifest.slot * _VERSION.size)
        if found != manifest.version:
            raise WeightsError(
                f"weights {manifest.version}: slot {manifest.slot} holds "
                + ("a set that is being written" if found == _WRITING else f"version {found}")
            )

    def _attach(self) -> memoryview:
        # A learner that was started again makes a new file under the same name.
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightsError(
                f"there is no weight ring at {self._path}: the learner is not running on this "
                "machine, or has closed it"
            ) from error
        try:
            status = os.fstat(fd)
            if self._view is None or self._identity != (status.st_dev, status.st_ino):
                if status.st_size < _PAGE:
                    raise WeightsError(f"{self._path} is not a weight ring")
                view = memoryview(mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ))
                magic, slots, slot_bytes = _HEADER.unpack_from(view)
                if magic != _MAGIC or _PAGE + slots * slot_bytes != status.st_size:
                    raise WeightsError(f"{self._path} is not a weight ring")
                # The old map lives on for as long as tensors still point into it.
                self._view, self._identity = view, (status.st_dev, status.st_ino)
            return self._view
        finally:
            os.close(fd)

    def close(self) -> None:
        """Forget the ring; the memory goes when the last tensor does."""
        self._view = self._identity = None
