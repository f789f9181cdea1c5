"""Weights through shared memory: a ring of preallocated buffers on one machine.

One file in /dev/shm, its name made from the run id: a page of header, then the slots. It is a
plain file and `mmap`, not `multiprocessing.shared_memory`, whose resource tracker (Python 3.11)
unlinks a segment when any process that merely attached to it exits. The writer reserves all
its pages at once, so a small /dev/shm is one clear error at the start and never a SIGBUS later.

The file is one of `memory`: what a killed learner leaves behind is removed by the next process.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from protocol.weights.base import Progress, Tensor, WeightReceiver, WeightsError
from protocol.weights.hash_ahead import HashAhead
from protocol.weights.memory import PREFIX, locked_file, memory_folder, remove_leftovers
from protocol.weights.payload import check_layout, slice_verified, write_all
from protocol.weights.ring import PAGE, WRITING, Ring, identity, mark, write_header
from protocol.weights.slots import SlotSender
from protocol.wire.envelope import check_name
from protocol.wire.messages import Canary, TensorSpec, WeightManifest, WeightsComing


def segment_path(run_id: str) -> Path:
    """Where the ring of a run lies."""
    return memory_folder() / f"{PREFIX}{check_name('run id', run_id)}"


class ShmSender(SlotSender):
    """The learner's end. `slot_bytes`: `weights.payload.payload_bytes` of the model."""

    def __init__(self, run_id: str, slot_bytes: int, slots: int = 2) -> None:
        super().__init__(slots)
        self._path = segment_path(run_id)
        self._slot_bytes = -(-max(slot_bytes, 1) // PAGE) * PAGE
        remove_leftovers()
        size = PAGE + slots * self._slot_bytes
        self._fd = self._create(size)
        self._map = mmap.mmap(self._fd, size)
        self._view = memoryview(self._map)
        write_header(self._view, slots, self._slot_bytes)

    def _create(self, size: int) -> int:
        fd, temporary = locked_file("new")
        try:
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

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Write into a free slot. Raises `NoFreeSlot` while readers need them all."""
        with self._changed:
            slot = self._begin()
        mark(self._view, slot, WRITING, version, 0)
        coming(WeightsComing(version, "shm", slot))
        start = PAGE + slot * self._slot_bytes
        place = self._view[start : start + self._slot_bytes]

        def put(at: int, chunk: memoryview) -> None:
            place[at : at + chunk.nbytes] = chunk

        def written(end: int) -> None:
            mark(self._view, slot, WRITING, version, end)

        specs, end = write_all(version, tensors, put, self._slot_bytes, written)
        place.release()
        mark(self._view, slot, version, version, end)
        with self._changed:
            self._commit(slot, version, readers, specs)
        return WeightManifest(version, "shm", slot, end, specs, canary)

    def _bytes(self, slot: int, offset: int, nbytes: int) -> memoryview:
        start = PAGE + slot * self._slot_bytes + offset
        return self._view[start : start + nbytes]

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
    """The actor's end. Attaches when first used.

    The place is made from the run id that this process was started with, never from a message.
    A learner that was started again makes a new ring under the same name; the one before it is
    kept until weights of the new one serve, because they may have to be put back.
    """

    def __init__(self, run_id: str) -> None:
        self._path = segment_path(run_id)
        self._rings: list[Ring] = []
        """The newest first."""
        self._layout: tuple[TensorSpec, ...] = ()
        self._ahead: HashAhead | None = None

    def expect(self, coming: WeightsComing) -> None:
        """Hash the tensors of a version while they are being written, in a thread."""
        if self._layout and coming.transport == "shm":
            self._give_up_ahead()  # of a version that never came
            with contextlib.suppress(WeightsError):
                self._ahead = HashAhead(self._newest(), coming, self._layout)

    def _give_up_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
        self._ahead = None

    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
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
        tensors = slice_verified(manifest, payload, verify=verify, known=known, progress=progress)
        ring.check(manifest)
        self._layout = manifest.tensors
        return tensors

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The ring's file, and where the manifest's slot starts in it."""
        ring = self._ring(manifest)
        return ring.path, ring.start(manifest.slot)

    def serves(self, manifest: WeightManifest) -> None:
        """Rings before the one with this version are not needed any more."""
        while len(self._rings) > 1 and self._rings[0].has(manifest):
            self._rings.pop().close()

    def close(self) -> None:
        """Forget the rings."""
        self._give_up_ahead()
        for ring in self._rings:
            ring.close()
        self._rings = []

    def _ring(self, manifest: WeightManifest) -> Ring:
        older = [ring for ring in self._rings if ring.has(manifest)]
        try:
            newest = self._newest()
        except WeightsError:
            if older:
                return older[0]
            raise
        return older[0] if older and not newest.has(manifest) else newest

    def _newest(self) -> Ring:
        with contextlib.suppress(OSError):
            if self._rings and self._rings[0].identity == identity(self._path.stat()):
                return self._rings[0]
        self._rings.insert(0, Ring(self._path))
        return self._rings[0]
