"""Weights over ZeroMQ, for machines without a shared disk.

The learner keeps the versions that are in use in memory, and serves chunks of them to whoever
asks, from a thread and a port of its own (the manifest names the port). One actor of a host asks
for a few chunks ahead and puts them into a file in memory (`protocol.weights.host_file`), which all
actors of the run on that host map, and their engines' workers. Each checks every hash.

A request is (magic, version, offset, length); an answer the same, then the bytes. A learner
that does not have them answers with length 0. With another magic, what comes is the difference
to the manifest's base version (see `protocol.weights.delta`), for those who have that.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import zmq

from protocol.config import ProtocolConfig
from protocol.run.endpoint import address_with, speaks_v6, to_bind
from protocol.weights.base import Progress, Tensor, WeightsError
from protocol.weights.delta import PAYS_BELOW, check_available, difference, restore
from protocol.weights.host_file import HostFile
from protocol.weights.host_receiver import HostReceiver
from protocol.weights.payload import write_all, write_at
from protocol.weights.slots import SlotSender
from protocol.wire.keys import open_server, secure_client
from protocol.wire.messages import Canary, WeightManifest, WeightsComing
from protocol.wire.socket import Refusals, apply_options

_ASK: Final = struct.Struct("<4sQQQ")
_MAGIC: Final = b"DTW1"
_DIFFERENCE: Final = b"DTWD"
_CHUNK: Final = 4 * 2**20
_AHEAD: Final = 4
"""Chunks asked for and not yet here: enough to keep the line busy, little to buffer."""


class ZmqSender(SlotSender):
    """The learner's end. `slot_bytes`: `weights.payload.payload_bytes` of the model."""

    def __init__(
        self,
        config: ProtocolConfig,
        slot_bytes: int,
        slots: int = 2,
        full_every: int = 0,
        beside: str | None = None,
    ) -> None:
        """Bind `config.weights_port` and serve from a thread.

        `full_every`: so many versions, one is sent whole and the others as differences; 0: all
        are sent whole. `beside`: where the learner listens, if that is not `config.endpoint`.
        Raises ValueError where the port is taken.
        """
        super().__init__(slots, copied=True)
        if full_every:
            check_available()
        self._full_every = full_every
        self._differences: tuple[int, list[bytes]] = (-1, [])
        """Version, and its chunks as differences to the one before."""
        self.refusals = Refusals()
        self._served_at = 0.0
        self._buffers = [memoryview(mmap.mmap(-1, max(1, slot_bytes))) for _ in range(slots)]
        self._places: dict[int, tuple[int, int]] = {}
        """Version -> slot, bytes: what may be asked for."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        apply_options(self._socket, config)
        self._socket.setsockopt(zmq.IPV6, int(speaks_v6(config.endpoint)))
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._socket.setsockopt(zmq.SNDHWM, 4 * _AHEAD)
        self.port = 0

        def bind() -> None:
            if config.endpoint.startswith("tcp://"):
                address = to_bind(config.endpoint, config.interface)[-1]
                self._socket.bind(address_with(address, config.weights_port))
                bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
                self.port = int(bound.rpartition(":")[2])
            else:
                self._socket.bind(address_with(beside or config.endpoint, 0))

        self._authenticator = open_server(
            self._context,
            self._socket,
            config.keys,
            self.refusals,
            bind,
            lambda why: (
                f"protocol.weights_port {config.weights_port} cannot be listened on "
                f"({why}); write another, or 0 for a free one"
            ),
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="weight-stream", daemon=True)
        self._thread.start()

    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Copy into a free buffer. Raises `NoFreeSlot` while readers need them all."""
        if self.failure is not None:
            raise RuntimeError("the thread that sends weights has died") from self.failure
        with self._changed:
            base = max(self._places, default=-1)
            slot = self._begin()
            self._places = {v: place for v, place in self._places.items() if place[0] != slot}
        buffer = self._buffers[slot]

        def put(at: int, chunk: memoryview) -> None:
            buffer[at : at + chunk.nbytes] = chunk

        specs, end = write_all(version, tensors, put, buffer.nbytes)
        chunks = self._difference(version, base, slot, end)
        with self._changed:
            self._commit(slot, version, readers, specs)
            self._places[version] = (slot, end)
            self._differences = (version, chunks)
        base = base if chunks else -1
        return WeightManifest(version, "zmq", slot, end, specs, canary, self.port, base)

    def _difference(self, version: int, base: int, slot: int, end: int) -> list[bytes]:
        """The chunks of a version as differences; empty where they do not pay, or are not due."""
        before, size = self._places.get(base, (0, -1))
        if not self._full_every or version % self._full_every == 0 or size != end:
            return []
        new, old = self._buffers[slot], self._buffers[before]
        chunks = []
        left = PAYS_BELOW * end
        for at in range(0, end, _CHUNK):
            stop = min(end, at + _CHUNK)
            chunks.append(difference(new[at:stop], old[at:stop]))
            left -= len(chunks[-1])
            if left < 0:
                return []
        return chunks

    def _bytes(self, slot: int, offset: int, nbytes: int) -> memoryview:
        return self._buffers[slot][offset : offset + nbytes]

    def _last_read(self) -> float:
        return self._served_at

    def close(self) -> None:
        """Stop serving."""
        self._stopping = True
        self._thread.join(5)

    def _serve(self) -> None:
        try:
            while not self._stopping:
                if self._authenticator is not None:
                    self._authenticator.check()
                if self._socket.poll(200):
                    self._answer(self._socket.recv_multipart())
        except BaseException as error:  # `failure`: training must not continue without actors
            self.failure = error
        finally:
            self._socket.close(0)
            if self._authenticator is not None:
                self._authenticator.stop()
            self._context.destroy(linger=0)

    def _answer(self, frames: list[bytes]) -> None:
        if len(frames) != 2 or len(frames[1]) != _ASK.size:
            self.refusals.count("request", "not a request for weights")
            return
        magic, version, offset, length = _ASK.unpack(frames[1])
        if magic not in (_MAGIC, _DIFFERENCE):
            self.refusals.count("request", "not a request for weights")
            return
        with self._changed:
            slot, end = self._places.get(version, (0, 0))
            compared, differences = self._differences
        if length > _CHUNK or offset + length > end:
            length = 0
        chunk: memoryview | bytes = self._buffers[slot][offset : offset + length]
        if magic == _DIFFERENCE:
            there = version == compared and bool(differences) and offset % _CHUNK == 0
            chunk = differences[offset // _CHUNK] if there and length else b""
            length = length if there else 0
        answer = _ASK.pack(magic, version, offset, length)
        self._socket.send_multipart([frames[0], answer], zmq.SNDMORE)
        self._socket.send(chunk, copy=False)
        if length:
            self._served_at = time.monotonic()


class ZmqReceiver(HostReceiver):
    """The actor's end. Asks the learner's host, at the manifest's port."""

    def __init__(
        self,
        config: ProtocolConfig,
        deadline_seconds: float = 8.0,
        where: Callable[[], str | None] | None = None,
        run_id: str = "",
    ) -> None:
        """`where` gives the address at which the learner listens; without it, `config.endpoint`."""
        super().__init__("zmq", run_id, deadline_seconds)
        self._config = config
        self._where = where or (lambda: config.endpoint)

    def _fetch(self, manifest: WeightManifest, fd: int, whole: bool, progress: Progress) -> None:
        """Not `whole`: as a difference where that can be had."""
        bases = [] if whole else [key for key in self._fetched if key[0] == manifest.base]
        base = self._fetched[bases[-1]] if bases else None
        if base is not None and base.nbytes == manifest.nbytes:
            with contextlib.suppress(WeightsError):  # whole, then
                self._fetch_by(manifest, fd, base, progress)
                return
        self._fetch_by(manifest, fd, None, progress)

    def _fetch_by(
        self, manifest: WeightManifest, fd: int, base: HostFile | None, progress: Progress
    ) -> None:
        listening = self._where()
        if listening is None:
            raise WeightsError(f"weights {manifest.version}: the learner has no address yet")
        if listening.startswith("tcp://") and not 0 < manifest.port < 65536:
            raise WeightsError(f"weights {manifest.version}: port {manifest.port}")
        context: zmq.Context[Any] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        apply_options(socket, self._config)
        socket.setsockopt(zmq.IPV6, int(speaks_v6(self._config.endpoint)))
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * _CHUNK)
        socket.setsockopt(zmq.LINGER, 0)
        try:
            if self._config.keys is not None:
                secure_client(socket, self._config.keys)
            socket.connect(address_with(listening, manifest.port))
            view = None if base is None else base.view()
            self._pull(socket, manifest, fd, view, progress)
        finally:
            socket.close()
            context.term()

    def _pull(
        self,
        socket: zmq.Socket[Any],
        manifest: WeightManifest,
        fd: int,
        base: memoryview | None,
        progress: Progress,
    ) -> None:
        magic = _MAGIC if base is None else _DIFFERENCE
        end = manifest.nbytes
        asked = got = 0
        heard = time.monotonic()
        while got < end:
            while asked < min(end, got + _AHEAD * _CHUNK):
                length = min(_CHUNK, end - asked)
                socket.send(_ASK.pack(magic, manifest.version, asked, length))
                asked += length
            if not socket.poll(200):
                progress.add(0)
                if time.monotonic() - heard > self._deadline:
                    raise WeightsError(
                        f"weights {manifest.version}: nothing came for {self._deadline:.0f} s, "
                        f"after {got} of {end} bytes"
                    )
                continue
            heard = time.monotonic()
            frames = socket.recv_multipart(copy=False)
            head = frames[0].bytes
            length = min(_CHUNK, end - got)
            # One connection keeps the order, so the next chunk is the one that must come.
            if head != _ASK.pack(magic, manifest.version, got, length) or len(frames) != 2:
                raise WeightsError(
                    f"weights {manifest.version}: the learner does not have them any more"
                )
            chunk = frames[1].buffer
            if base is not None:
                chunk = restore(frames[1].bytes, base[got : got + length])
            if chunk.nbytes != length:
                raise WeightsError(f"weights {manifest.version}: a chunk of the wrong length")
            progress.add(length)
            write_at(fd, chunk, got)
            got += length
