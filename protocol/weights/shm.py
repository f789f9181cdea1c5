"""Weights through shared memory: a ring of preallocated buffers on one machine.

One file in /dev/shm, its name made from the run id: a page of header, then the slots. It is a
plain file and `mmap`, not `multiprocessing.shared_memory`, whose resource tracker (Python 3.11)
unlinks a segment when any process that merely attached to it exits. The writer reserves all
its pages at once, so a small /dev/shm is one clear error at the start and never a SIGBUS later.

The writer holds a lock on its file for as long as it lives, and the kernel drops the lock when
it dies; a file without a lock is left over from a killed run, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import xxhash

from protocol.weights.base import (
    NoFreeSlot,
    Tensor,
    WeightReceiver,
    WeightSender,
    WeightsError,
    check_layout,
    slice_verified,
    write_all,
)
from protocol.weights.slots import SlotLedger
from protocol.wire.envelope import check_name
from protocol.wire.messages import Canary, TensorSpec, WeightManifest, WeightsComing

PREFIX: Final = "dynatok-"
"""How the names of our files in memory start."""
_PAGE: Final = 4096
_HEADER: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"DTWRING1"
_SLOT: Final = struct.Struct("<qqQ")
_WRITING: Final = -1
_AHEAD_SECONDS: Final = 30.0
"""So long a hashing thread waits for bytes that do not come."""


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
            self._mark(slot, _WRITING, _WRITING, 0)
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

    def _mark(self, slot: int, complete: int, writing: int, written: int) -> None:
        _SLOT.pack_into(self._view, _HEADER.size + slot * _SLOT.size, complete, writing, written)

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Write into a free slot. Raises `NoFreeSlot` while readers hold them all."""
        with self._changed:
            slot = self._ledger.begin()
        self._mark(slot, _WRITING, version, 0)
        coming(WeightsComing(version, "shm", slot))
        start = _PAGE + slot * self._slot_bytes
        place = self._view[start : start + self._slot_bytes]

        def put(at: int, piece: memoryview) -> None:
            place[at : at + piece.nbytes] = piece

        def written(end: int) -> None:
            self._mark(slot, _WRITING, version, end)

        specs, end = write_all(version, tensors, put, self._slot_bytes, written)
        place.release()
        self._mark(slot, version, version, end)
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


class _Ring:
    """A ring as a reader sees it. Its descriptor keeps it readable when its name is gone."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightsError(
                f"there is no weight ring at {path}: the learner is not running on this machine, "
                "or has closed it"
            ) from error
        status = os.fstat(self._fd)
        self.identity = _identity(status)
        try:
            if status.st_size < _PAGE:
                raise WeightsError(f"{path} is not a weight ring")
            self._view = memoryview(mmap.mmap(self._fd, status.st_size, prot=mmap.PROT_READ))
            magic, self.slots, self.slot_bytes = _HEADER.unpack_from(self._view)
            if magic != _MAGIC or _PAGE + self.slots * self.slot_bytes != status.st_size:
                raise WeightsError(f"{path} is not a weight ring")
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> Path:
        """Where any process of this user can open this very ring, whatever its name holds now."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def state(self, slot: int) -> tuple[int, int, int]:
        """(version that is complete, version that is being written, bytes of it so far)."""
        found: tuple[int, int, int] = _SLOT.unpack_from(
            self._view, _HEADER.size + slot * _SLOT.size
        )
        return found

    def holds(self, manifest: WeightManifest) -> bool:
        """Whether the manifest's slot holds its version."""
        return 0 <= manifest.slot < self.slots and self.state(manifest.slot)[0] == manifest.version

    def check(self, manifest: WeightManifest) -> None:
        """Raise `WeightsError` unless the manifest's slot holds its version."""
        if not 0 <= manifest.slot < self.slots:
            raise WeightsError(f"weights {manifest.version}: slot {manifest.slot} of {self.slots}")
        found = self.state(manifest.slot)[0]
        if found != manifest.version:
            raise WeightsError(
                f"weights {manifest.version}: slot {manifest.slot} holds "
                + ("a set that is being written" if found == _WRITING else f"version {found}")
            )

    def payload(self, slot: int, nbytes: int) -> memoryview:
        """The bytes of a slot."""
        return self._view[self.start(slot) : self.start(slot) + nbytes]

    def start(self, slot: int) -> int:
        """Where a slot begins in the file."""
        return _PAGE + slot * self.slot_bytes

    def close(self) -> None:
        """Let go of the file; the memory goes when the last tensor does."""
        os.close(self._fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class ShmReceiver(WeightReceiver):
    """The actor's end. Attaches when first used.

    The place is made from the run id that this process was started with, never from a message.
    A learner that was started again makes a new ring under the same name; the one before it is
    kept until weights of the new one serve, because they may have to be put back.
    """

    def __init__(self, run_id: str) -> None:
        self._path = segment_path(run_id)
        self._rings: list[_Ring] = []
        """The newest first."""
        self._layout: tuple[TensorSpec, ...] = ()
        self._ahead: _Ahead | None = None

    def expect(self, coming: WeightsComing) -> None:
        """Hash the tensors of a version while they are being written, in a thread."""
        if self._layout and self._ahead is None and coming.transport == "shm":
            with contextlib.suppress(WeightsError):
                self._ahead = _Ahead(self._newest(), coming, self._layout)

    def read(self, manifest: WeightManifest, *, verify: bool = True) -> dict[str, Tensor]:
        """Views of the slot that the manifest names; nothing is copied."""
        if manifest.transport != "shm":
            raise WeightsError(
                f"weights {manifest.version} came by '{manifest.transport}', not shm"
            )
        ring = self._ring(manifest)
        ring.check(manifest)
        check_layout(manifest, ring.slot_bytes)
        payload = ring.payload(manifest.slot, manifest.nbytes)
        ahead, self._ahead = self._ahead, None
        known = {} if ahead is None else ahead.result(ring, manifest)
        tensors = slice_verified(manifest, payload, verify=verify, known=known)
        ring.check(manifest)
        self._layout = manifest.tensors
        return tensors

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The ring's file, and where the manifest's slot starts in it."""
        ring = self._ring(manifest)
        return ring.path, ring.start(manifest.slot)

    def serves(self, manifest: WeightManifest) -> None:
        """Rings before the one that holds this version are not needed any more."""
        while len(self._rings) > 1 and self._rings[0].holds(manifest):
            self._rings.pop().close()

    def close(self) -> None:
        """Forget the rings."""
        for ring in self._rings:
            ring.close()
        self._rings = []

    def _ring(self, manifest: WeightManifest) -> _Ring:
        older = [ring for ring in self._rings if ring.holds(manifest)]
        try:
            newest = self._newest()
        except WeightsError:
            if older:
                return older[0]
            raise
        return older[0] if older and not newest.holds(manifest) else newest

    def _newest(self) -> _Ring:
        with contextlib.suppress(OSError):
            if self._rings and self._rings[0].identity == _identity(self._path.stat()):
                return self._rings[0]
        self._rings.insert(0, _Ring(self._path))
        return self._rings[0]


class _Ahead:
    """Hashes what the learner writes, right behind it: when the manifest comes, little is left.

    The layout is that of the version before; where it turns out to be another one, or the bytes
    were not yet the final ones, the tensor is hashed again when it is read.
    """

    def __init__(self, ring: _Ring, coming: WeightsComing, layout: tuple[TensorSpec, ...]) -> None:
        self._ring = ring
        self._coming = coming
        self._layout = layout
        self._hashes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="hash-ahead", daemon=True)
        if 0 <= coming.slot < ring.slots:
            self._thread.start()

    def result(self, ring: _Ring, manifest: WeightManifest) -> dict[str, int]:
        """Tensor name -> hash, of those that lie where they were expected."""
        if self._thread.ident is not None:
            self._thread.join()
        same = ring is self._ring and manifest.slot == self._coming.slot
        if not same or manifest.version != self._coming.version:
            return {}
        places = {spec.name: (spec.offset, spec.nbytes) for spec in self._layout}
        return {
            spec.name: self._hashes[spec.name]
            for spec in manifest.tensors
            if spec.name in self._hashes and places[spec.name] == (spec.offset, spec.nbytes)
        }

    def _run(self) -> None:
        ring, slot = self._ring, self._coming.slot
        if not self._layout or self._layout[-1].offset + self._layout[-1].nbytes > ring.slot_bytes:
            return
        payload = ring.payload(slot, ring.slot_bytes)
        deadline = time.monotonic() + _AHEAD_SECONDS
        for spec in self._layout:
            end = spec.offset + spec.nbytes
            while True:
                complete, writing, written = ring.state(slot)
                if complete == self._coming.version or (
                    writing == self._coming.version and written >= end
                ):
                    break
                if time.monotonic() > deadline or max(complete, writing) > self._coming.version:
                    return
                time.sleep(0.0005)
            self._hashes[spec.name] = xxhash.xxh3_64_intdigest(payload[spec.offset : end])
