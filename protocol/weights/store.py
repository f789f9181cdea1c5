"""Weights through an object store: one safetensors object per version.

For actors of many hosts, or far away: the learner writes a version once, and the store serves all
of them. Any file system that fsspec knows will do (`s3://`, `gs://`, `az://`, `file://`); its own
package must be installed, and finds credentials and timeouts in its own ways. The place is
`protocol.weights_store` of each process's own configuration, with a folder of the run's name in it.

An object is announced when it is complete, and deleted when nobody fetches it and a newer one is
there: an actor that serves a version has it on its own host. What a learner leaves that was killed
is deleted by the next one of the run; a lifecycle rule of the store finds the rest.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from protocol.weights.base import NoFreeSlot, Progress, Tensor, WeightSender, WeightsError
from protocol.weights.host_receiver import HostReceiver
from protocol.weights.memory import locked_file, remove_leftovers
from protocol.weights.payload import write_at
from protocol.weights.safetensors_file import LENGTH, Layout, payload_start
from protocol.wire.envelope import check_name
from protocol.wire.messages import Canary, WeightManifest, WeightsComing

_CHUNK: Final = 8 * 2**20
_AHEAD: Final = 4
"""Chunks asked for and not yet here."""
_FIELD: Final = "protocol.weights_store"


def check_store(url: str) -> None:
    """Raise ValueError for an address that this machine has no way to speak to."""
    _open(url)


def _open(url: str) -> tuple[Any, str]:
    """(file system, path in it)"""
    import fsspec

    scheme, colon, place = url.partition("://")
    if not colon or not place:
        raise ValueError(f"{_FIELD} is '{url}'; write an address such as s3://bucket/folder")
    if scheme == "memory":
        raise ValueError(f"{_FIELD}: memory:// is of one process; write file:// or a real store")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{_FIELD} '{url}': {error}") from error
    return system, str(path)


def _object(root: str, version: int) -> str:
    return f"{root}/weights-{version:010d}.safetensors"


class StoreSender(WeightSender):
    """The learner's end. `expected`: name -> (dtype, shape) of every tensor of the model."""

    def __init__(
        self, url: str, run_id: str, expected: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        """Raises ValueError where the store cannot be written to."""
        self._system, path = _open(url)
        self._root = f"{path}/{check_name('run id', run_id)}"
        self._layout = Layout(expected)
        self._readers: dict[int, set[str]] = {}
        """Version -> who may still fetch it."""
        self._newest: memoryview | None = None
        self._lock = threading.Lock()
        remove_leftovers()
        try:
            self._clear()
            self._system.makedirs(self._root, exist_ok=True)
            probe = f"{self._root}/can-be-written"
            self._system.pipe_file(probe, b"yes")
            self._system.rm_file(probe)
        except Exception as error:  # every store has its own
            raise ValueError(f"{_FIELD}: cannot write to {url}: {_words(error)}") from error

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Write a version. Raises `WeightsError` unless it has exactly the expected tensors.

        A store that does not take it is a `NoFreeSlot`: it may later.
        """
        if version <= max(self._readers, default=-1):
            raise ValueError(f"version {version} is not newer than {max(self._readers)}")
        fd, name = locked_file("publish")
        name.unlink()
        try:
            specs = self._layout.write(fd, version, tensors)
            size = os.fstat(fd).st_size
            written = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        finally:
            os.close(fd)
        path = _object(self._root, version)
        try:
            with self._system.open(path, "wb", block_size=_CHUNK) as file:
                for at in range(0, size, _CHUNK):
                    file.write(written[at : at + _CHUNK])
        except Exception as error:
            with contextlib.suppress(Exception):
                self._system.rm_file(path)
            raise NoFreeSlot(
                f"cannot write weights {version} to {path}: {_words(error)}"
            ) from error
        self._newest = written
        with self._lock:
            self._readers[version] = set(readers)
        self._delete()
        return WeightManifest(version, "store", 0, self._layout.nbytes, specs, canary)

    def newest(self, name: str) -> memoryview | None:
        """From the copy that was uploaded, which is kept until the next."""
        return None if self._newest is None else self._layout.find(self._newest, name)

    def joined(self, reader: str) -> None:
        with self._lock:
            if self._readers:
                self._readers[max(self._readers)].add(reader)

    def applied(self, reader: str, version: int) -> None:
        self._release(reader, version)

    def rejected(self, reader: str, version: int) -> None:
        self._release(reader, version)

    def left(self, reader: str) -> None:
        self._release(reader, max(self._readers, default=0))

    def close(self) -> None:
        """Delete what is left."""
        with contextlib.suppress(Exception):
            self._clear()

    def _release(self, reader: str, version: int) -> None:
        """It needs nothing up to this version."""
        with self._lock:
            for one, readers in self._readers.items():
                if one <= version:
                    readers.discard(reader)
        self._delete()

    def _delete(self) -> None:
        with self._lock:
            old = [one for one in sorted(self._readers)[:-1] if not self._readers[one]]
            for version in old:
                del self._readers[version]
        for version in old:
            with contextlib.suppress(Exception):  # it costs room, and the end deletes it
                self._system.rm_file(_object(self._root, version))

    def _clear(self) -> None:
        if self._system.exists(self._root):
            self._system.rm(self._root, recursive=True)


class StoreReceiver(HostReceiver):
    """The actor's end."""

    def __init__(self, url: str, run_id: str, deadline_seconds: float = 30.0) -> None:
        """Raises ValueError for an address that this machine has no way to speak to."""
        super().__init__("store", run_id, deadline_seconds)
        self._system, path = _open(url)
        self._root = f"{path}/{check_name('run id', run_id)}"

    def _fetch(self, manifest: WeightManifest, fd: int, whole: bool, progress: Progress) -> None:
        path = _object(self._root, manifest.version)
        pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="weight-store")
        try:
            head = self._wait(pool.submit(self._part, path, 0, LENGTH.size), path, progress)
            start = payload_start(head, f"weights {manifest.version}: {path}")
            asked: deque[Future[bytes]] = deque()
            at = got = 0
            while got < manifest.nbytes:
                while at < manifest.nbytes and len(asked) < _AHEAD:
                    stop = min(manifest.nbytes, at + _CHUNK)
                    asked.append(pool.submit(self._part, path, start + at, start + stop))
                    at = stop
                chunk = memoryview(self._wait(asked.popleft(), path, progress))
                if chunk.nbytes != min(_CHUNK, manifest.nbytes - got):
                    raise WeightsError(f"weights {manifest.version}: {path} is too short")
                progress.add(chunk.nbytes)
                write_at(fd, chunk, got)
                got += chunk.nbytes
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _part(self, path: str, start: int, stop: int) -> bytes:
        return bytes(self._system.cat_file(path, start=start, end=stop))

    def _wait(self, part: Future[bytes], path: str, progress: Progress) -> bytes:
        waited = 0.0
        while True:
            try:
                return part.result(0.2)
            except TimeoutError as error:
                if part.done():
                    raise WeightsError(f"cannot read {path}: {_words(error)}") from error
                waited += 0.2
                progress.add(0)
                if waited > self._deadline:
                    raise WeightsError(
                        f"cannot read {path}: nothing came for {self._deadline:.0f} s"
                    ) from None
            except Exception as error:
                raise WeightsError(f"cannot read {path}: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
