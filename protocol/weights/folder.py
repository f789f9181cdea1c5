"""Weights through a folder that both sides see: one safetensors file per version.

For a shared file system, for late joiners, and to look at with any tool that reads safetensors.
A file appears under its name only when it is complete and on disk; on a network file system a
reader may see it seconds later, and waits for it. Files are deleted when nobody needs them any
more; the latest two always stay. Those of a learner that was killed stay until weights of the
next one serve: actors may have to go back to them.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
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
from protocol.weights.payload import DTYPE_BYTES, check_layout, nbytes, slice_verified, write_hashed
from protocol.wire.messages import Canary, TensorSpec, WeightManifest, WeightsComing

_LENGTH: Final = struct.Struct("<Q")
_LOOK_SECONDS: Final = 0.1
_HEADER_LIMIT: Final = 100_000_000
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
        # safetensors leaves no gaps, so the widest dtypes come first: all start aligned.
        order = sorted(expected, key=lambda name: (-DTYPE_BYTES[expected[name][0]], name))
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {}
        end = 0
        for name in order:
            dtype, shape = expected[name]
            self._offsets[name] = end
            end += nbytes(dtype, shape)
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [self._offsets[name], end],
            }
        self._nbytes = end
        self._expected = dict(expected)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % 64)
        self._header = _LENGTH.pack(len(text)) + text
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
            specs = self._write(temporary, version, tensors)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoFreeSlot(f"no room for weights {version} in {self._folder}") from error
            raise
        temporary.rename(path)
        with path.open("rb") as file:
            self._mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        specs.sort(key=lambda spec: (spec.offset, spec.nbytes))
        with self._lock:
            self._readers[version] = set(readers)
            self._published.add(version)
        self._delete()
        return WeightManifest(version, "folder", 0, self._nbytes, tuple(specs), canary)

    def newest(self, name: str) -> memoryview | None:
        """Read back from the newest file, which was just written: mostly from memory."""
        if self._mapped is None or name not in self._expected:
            return None
        start = len(self._header) + self._offsets[name]
        return self._mapped[start : start + nbytes(*self._expected[name])]

    def _write(
        self, temporary: Path, version: int, tensors: Iterable[tuple[str, Tensor]]
    ) -> list[TensorSpec]:
        specs = []
        with temporary.open("wb", buffering=0) as file:
            fd = file.fileno()

            def put(at: int, chunk: memoryview) -> None:
                _write(fd, chunk, len(self._header) + at)

            _write(fd, memoryview(self._header), 0)
            for name, tensor in tensors:
                if self._expected.get(name) != (tensor.dtype, tensor.shape):
                    raise WeightsError(
                        f"weights {version}: tensor '{name}' {tensor.dtype} {list(tensor.shape)} "
                        "is not what this transport was made for"
                    )
                specs.append(write_hashed(name, tensor, self._offsets[name], put))
            os.fsync(fd)
        if len(specs) != len(self._expected):
            raise WeightsError(f"weights {version}: {len(specs)} of {len(self._expected)} tensors")
        return specs

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
                head = file.read(_LENGTH.size)
        except OSError as error:
            raise WeightsError(
                f"weights {manifest.version}: cannot read {path}: {error.strerror}"
            ) from error
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else _HEADER_LIMIT + 1
        if length > _HEADER_LIMIT:
            raise WeightsError(f"weights {manifest.version}: {path} is not a safetensors file")
        return path, _LENGTH.size + length

    def close(self) -> None:
        """Nothing is open."""


def _write(fd: int, data: memoryview, at: int) -> None:
    while data.nbytes:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
