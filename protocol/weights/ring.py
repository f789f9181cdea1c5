"""The file of a ring of weight buffers: a page of header, then the slots.

The header says of each slot which version is complete in it, which one is being written, and how
many of its bytes are final. One process writes, others of the same machine map it.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

from protocol.weights.base import WeightsError
from protocol.wire.messages import WeightManifest

PAGE: Final = 4096
WRITING: Final = -1
"""Stands for a version where there is none."""
_HEADER: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"DTWRING1"
_SLOT: Final = struct.Struct("<qqQ")


def write_header(view: memoryview, slots: int, slot_bytes: int) -> None:
    """Describe an empty ring. The magic comes last."""
    for slot in range(slots):
        mark(view, slot, WRITING, WRITING, 0)
    _HEADER.pack_into(view, 0, _MAGIC, slots, slot_bytes)


def mark(view: memoryview, slot: int, complete: int, writing: int, written: int) -> None:
    """Say which version a slot has, or which one and how many bytes are being written."""
    _SLOT.pack_into(view, _HEADER.size + slot * _SLOT.size, complete, writing, written)


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells two files of one name apart."""
    return status.st_dev, status.st_ino


class Ring:
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
        self.identity = identity(status)
        try:
            if status.st_size < PAGE:
                raise WeightsError(f"{path} is not a weight ring")
            self._view = memoryview(mmap.mmap(self._fd, status.st_size, prot=mmap.PROT_READ))
            magic, self.slots, self.slot_bytes = _HEADER.unpack_from(self._view)
            if magic != _MAGIC or PAGE + self.slots * self.slot_bytes != status.st_size:
                raise WeightsError(f"{path} is not a weight ring")
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> Path:
        """Where any process of this user can open this very ring, whatever has its name now."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def state(self, slot: int) -> tuple[int, int, int]:
        """(version that is complete, version that is being written, bytes of it so far)."""
        found: tuple[int, int, int] = _SLOT.unpack_from(
            self._view, _HEADER.size + slot * _SLOT.size
        )
        return found

    def has(self, manifest: WeightManifest) -> bool:
        """Whether the manifest's slot has its version."""
        return 0 <= manifest.slot < self.slots and self.state(manifest.slot)[0] == manifest.version

    def check(self, manifest: WeightManifest) -> None:
        """Raise `WeightsError` unless the manifest's slot has its version."""
        if not 0 <= manifest.slot < self.slots:
            raise WeightsError(f"weights {manifest.version}: slot {manifest.slot} of {self.slots}")
        found = self.state(manifest.slot)[0]
        if found != manifest.version:
            raise WeightsError(
                f"weights {manifest.version}: slot {manifest.slot} has "
                + ("a set that is being written" if found == WRITING else f"version {found}")
            )

    def payload(self, slot: int, nbytes: int) -> memoryview:
        """The bytes of a slot."""
        return self._view[self.start(slot) : self.start(slot) + nbytes]

    def start(self, slot: int) -> int:
        """Where a slot begins in the file."""
        return PAGE + slot * self.slot_bytes

    def close(self) -> None:
        """Close the file; the memory is freed with the last tensor of it."""
        os.close(self._fd)
