"""Weights through a folder that both sides see: one safetensors file per version.

For a shared file system, for late joiners, and to look at with any tool that reads safetensors.
A file appears under its name only when it is complete and on disk; on a network file system a
reader may see it seconds later, and waits for it. Files are deleted when nobody needs them any
more; the latest two always stay. Those of a learner that was killed stay until weights of the
next one serve: actors may have to go back to them.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from protocol.weights.base import (
    NoFreeSlot,
    Progress,
    Tensor,
    WeightReceiver,
    WeightSender,
    WeightsError,
)
from protocol.weights.payload import check_layout, slice_verified
from protocol.weights.safetensors_file import LENGTH, Layout, payload_start
from protocol.wire.messages import Canary, WeightManifest, WeightsComing

_LOOK_SECONDS: Final = 0.1
_NAME: Final = "weights-*.safetensors"
_BEFORE: Final = "actors that served before the learner was started again"


def weights_path(folder: Path, version: int) -> Path:
    """The file of a version."""
    return folder / f"weights-{version:010d}.safetensors"


def versions_in(folder: Path) -> list[int]:
    """The versions whose files are complete, ascending."""
    stems = (path.stem.removeprefix("weights-") for path in folder.glob(_NAME))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


class FolderSender(WeightSender):
    """The learner's end. `expected`: name -> (dtype, shape) of every tensor of the model."""

    def __init__(self, folder: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._folder = folder
        self._readers: dict[int, set[str]] = {}
        self._published: set[int] = set()
        """Versions of this process."""
        self._mapped: memoryview | None = None
        """The file of the newest of them."""
        self._lock = threading.Lock()
        self._layout = Layout(expected)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("weights-*.writing"):
            path.unlink()
        for version in versions_in(folder):
            self._readers[version] = {_BEFORE}

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Write a version. Raises `WeightsError` unless it has exactly the expected tensors.

        A full disk is a `NoFreeSlot`: there may be room later.
        """
        if version <= max(self._published, default=-1):
            raise ValueError(f"version {version} is not newer than {max(self._published)}")
        path = weights_path(self._folder, version)
        temporary = path.with_suffix(".writing")
        try:
            with temporary.open("wb", buffering=0) as file:
                specs = self._layout.write(file.fileno(), version, tensors)
                os.fsync(file.fileno())
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoFreeSlot(f"no room for weights {version} in {self._folder}") from error
            raise
        temporary.rename(path)
        with path.open("rb") as file:
            self._mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        with self._lock:
            self._readers[version] = set(readers)
            self._published.add(version)
        self._delete()
        return WeightManifest(version, "folder", 0, self._layout.nbytes, specs, canary)

    def newest(self, name: str) -> memoryview | None:
        """Read back from the newest file, which was just written: mostly from memory."""
        return None if self._mapped is None else self._layout.find(self._mapped, name)

    def joined(self, reader: str) -> None:
        with self._lock:
            if self._readers:
                self._readers[max(self._readers)].add(reader)

    def applied(self, reader: str, version: int) -> None:
        with self._lock:
            for one, readers in self._readers.items():
                if one < version:
                    readers.discard(reader)
            self._readers.get(version, set()).add(reader)
            if version in self._published:
                for readers in self._readers.values():
                    readers.discard(_BEFORE)
        self._delete()

    def rejected(self, reader: str, version: int) -> None:
        with self._lock:
            self._readers.get(version, set()).discard(reader)
        self._delete()

    def left(self, reader: str) -> None:
        with self._lock:
            for readers in self._readers.values():
                readers.discard(reader)
        self._delete()

    def close(self) -> None:
        """Nothing to give back: the latest files stay for whoever looks."""

    def _delete(self) -> None:
        with self._lock:
            for version in sorted(self._readers)[:-2]:
                if not self._readers[version]:
                    del self._readers[version]
                    self._published.discard(version)
                    weights_path(self._folder, version).unlink(missing_ok=True)


class FolderReceiver(WeightReceiver):
    """The actor's end. The folder is the configured one, never one from a message."""

    def __init__(self, folder: Path, appear_seconds: float = 30.0) -> None:
        """`appear_seconds`: so long a file that was announced may take to be seen here."""
        self._folder = folder
        self._appear_seconds = appear_seconds

    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Views of the mapped file."""
        self._wait_for(manifest, progress or Progress())
        path, start = self.locate(manifest)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != start + manifest.nbytes:
                raise WeightsError(
                    f"weights {manifest.version}: {path} has {size} bytes instead of "
                    f"{start + manifest.nbytes}"
                )
            check_layout(manifest, size - start)
            view = memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
        return slice_verified(manifest, view[start:], verify=verify, progress=progress)

    def _wait_for(self, manifest: WeightManifest, progress: Progress) -> None:
        """Until the file is seen, or cannot come any more. `locate` says what is wrong."""
        deadline = time.monotonic() + self._appear_seconds
        path = weights_path(self._folder, manifest.version)
        # Listing the folder also makes a network file system look again.
        while manifest.transport == "folder" and time.monotonic() < deadline:
            there = versions_in(self._folder)
            if path.exists() or (there and there[-1] > manifest.version):
                return
            progress.add(0)
            time.sleep(_LOOK_SECONDS)

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The version's file, and where its data starts."""
        if manifest.transport != "folder":
            raise WeightsError(
                f"weights {manifest.version} came by '{manifest.transport}', not folder"
            )
        path = weights_path(self._folder, manifest.version)
        try:
            with path.open("rb") as file:
                head = file.read(LENGTH.size)
        except OSError as error:
            raise WeightsError(
                f"weights {manifest.version}: cannot read {path}: {error.strerror}"
            ) from error
        return path, payload_start(head, f"weights {manifest.version}: {path}")

    def close(self) -> None:
        """Nothing is open."""
