"""What it takes to bring new weights to a reader: `dynatok bench sync`.

A learner publishes, a reader in another process fetches, verifies and applies (copies every
tensor into buffers of its own, as an engine does). Only applying pauses generation. Beside
each transport stands the machine's own floor: the same bytes copied twice, by memcpy alone,
once by the writer and once by the reader.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from protocol.config import ProtocolConfig
from protocol.folder import FolderReceiver, FolderSender
from protocol.messages import Canary, WeightManifest
from protocol.shm import ShmReceiver, ShmSender
from protocol.stream import StreamReceiver, StreamSender
from protocol.weights import Tensor, WeightReceiver, WeightSender, as_tensor, payload_bytes

TRANSPORTS = ("shm", "folder", "stream")
_CANARY = Canary((), (), 0.0)


class SyncResult(msgspec.Struct):
    """One transport at one size: medians over the repeats."""

    transport: str
    gigabytes: float
    seconds: float
    """From `publish` to applied."""
    publish_seconds: float
    fetch_seconds: float
    """Reading and verifying, while generation goes on."""
    pause_seconds: float
    """Applying."""
    hash_seconds: float
    """Verifying at the reader (part of `fetch_seconds`). The writer hashes each piece while it is
    in its cache to be copied: part of `publish_seconds`, and hardly anything."""
    hash_share: float
    """Of `seconds`."""
    gb_per_s: float
    floor_seconds: float


def run(
    gigabytes: tuple[float, ...] = (1.0,),
    transports: tuple[str, ...] = TRANSPORTS,
    repeats: int = 5,
    folder: Path | None = None,
) -> list[SyncResult]:
    """Measure every transport at every size. `folder`: where files go (default: temporary)."""
    out = []
    for size in gigabytes:
        for transport in transports:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                out.append(_measure(transport, size, repeats, Path(name)))
    return out


def _shapes(gigabytes: float) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A transformer's mix: matrices of 32 MiB at most, and small vectors between them."""
    left = int(gigabytes * 1e9)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    while left > 0:
        rows = max(1, min(4096, left // (2 * 4096)))
        shapes[f"layers.{len(shapes)}.weight"] = ("BF16", (rows, 4096))
        shapes[f"layers.{len(shapes)}.norm"] = ("BF16", (4096,))
        left -= (rows + 1) * 4096 * 2
    return shapes


def _measure(transport: str, gigabytes: float, repeats: int, folder: Path) -> SyncResult:
    shapes = _shapes(gigabytes)
    source = {
        name: as_tensor(dtype, shape, np.random.default_rng(0).bytes(2 * int(np.prod(shape))))
        for name, (dtype, shape) in shapes.items()
    }
    run_id = f"bench-{uuid.uuid4().hex[:8]}"
    sender = _sender(transport, run_id, shapes, folder)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    reader = context.Process(target=_reader, args=(transport, run_id, folder, there))
    reader.start()
    rows = []
    try:
        for version in range(repeats + 1):
            start = time.perf_counter()
            manifest = sender.publish(version, source.items(), _CANARY, ["reader"])
            published = time.perf_counter()
            here.send(msgspec.msgpack.encode(manifest))
            if not here.poll(300):
                raise TimeoutError("the reading process did not answer within 300 s")
            fetch, pause, hashing, extra = here.recv()
            end = time.perf_counter()
            sender.applied("reader", version)
            if version:  # the first one touches every page for the first time
                rows.append((end - start - extra, published - start, fetch, pause, hashing))
        here.send(None)
    finally:
        reader.join(5)
        reader.kill()
        sender.close()
    medians = np.median(np.array(rows), axis=0)
    seconds, publish, fetch, pause, hashing = (float(n) for n in medians)
    size = sum(t.data.nbytes for t in source.values())
    return SyncResult(
        transport=transport,
        gigabytes=size / 1e9,
        seconds=seconds,
        publish_seconds=publish,
        fetch_seconds=fetch,
        pause_seconds=pause,
        hash_seconds=hashing,
        hash_share=hashing / seconds,
        gb_per_s=size / 1e9 / seconds,
        floor_seconds=2 * _copy_seconds(source),
    )


def _sender(
    transport: str, run_id: str, shapes: dict[str, tuple[str, tuple[int, ...]]], folder: Path
) -> WeightSender:
    if transport == "shm":
        return ShmSender(run_id, payload_bytes(shapes))
    if transport == "folder":
        return FolderSender(folder, shapes)
    return StreamSender(ProtocolConfig(), payload_bytes(shapes))


def _reader(transport: str, run_id: str, folder: Path, pipe: Connection) -> None:
    receiver: WeightReceiver = (
        ShmReceiver(run_id)
        if transport == "shm"
        else FolderReceiver(folder)
        if transport == "folder"
        else StreamReceiver(ProtocolConfig())
    )
    model: dict[str, np.ndarray] = {}
    while (message := pipe.recv()) is not None:
        manifest = msgspec.msgpack.decode(message, type=WeightManifest)
        start = time.perf_counter()
        tensors = receiver.read(manifest)
        fetched = time.perf_counter()
        _copy(tensors, model)
        applied = time.perf_counter()
        # Twice more, outside what is timed: with and without hashing what is here already.
        receiver.read(manifest)
        hashed = time.perf_counter()
        receiver.read(manifest, verify=False)
        end = time.perf_counter()
        extra = end - applied
        pipe.send((fetched - start, applied - fetched, 2 * hashed - applied - end, extra))
    receiver.close()


def _copy(tensors: dict[str, Tensor], into: dict[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if name not in into:
            into[name] = np.empty(tensor.data.nbytes, np.uint8)
        into[name][:] = np.frombuffer(tensor.data, np.uint8)


def _copy_seconds(source: dict[str, Tensor]) -> float:
    into: dict[str, np.ndarray] = {}
    _copy(source, into)
    return min(_timed(lambda: _copy(source, into)) for _ in range(3))


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(prog="dynatok bench sync", description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0], help="sizes, bf16")
    parser.add_argument(
        "--transports", nargs="+", choices=TRANSPORTS, default=list(TRANSPORTS), help="which"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where files are written (the disk matters)")
    options = parser.parse_args(arguments)
    results = run(
        tuple(options.gigabytes), tuple(options.transports), options.repeats, options.folder
    )
    table = Table(title="weight sync")
    for column in ("transport", "GB", "seconds", "floor", "publish", "fetch", "paused", "hash"):
        table.add_column(column, justify="left" if column == "transport" else "right")
    for one in results:
        table.add_row(
            one.transport,
            f"{one.gigabytes:.2f}",
            f"{one.seconds:.2f} ({one.gb_per_s:.1f} GB/s)",
            f"{one.floor_seconds:.2f}",
            f"{one.publish_seconds:.2f}",
            f"{one.fetch_seconds:.2f}",
            f"{one.pause_seconds:.2f} ({one.pause_seconds / one.seconds:.0%})",
            f"{one.hash_seconds:.2f} ({one.hash_share:.0%})",
        )
    Console().print(table)
    print(msgspec.json.encode({"results": results}).decode(), flush=True)
    return 0
