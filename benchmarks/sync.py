"""What it takes to bring new weights to a reader: `dynatok bench sync`.

A learner publishes, a reader in another process fetches, verifies and applies (copies every
tensor into buffers of its own with torch, as an engine does). Only applying pauses generation.
Beside each transport stands the machine's own floor: the same bytes copied twice, by memcpy alone
in one thread, once by the writer and once by the reader.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks._folder import existing_folder
from benchmarks._sync_models import RANDOM_1B, WAYS, measure, table, write_page
from protocol.config import ProtocolConfig
from protocol.weights.base import Tensor
from protocol.weights.payload import as_tensor
from protocol.weights.transports import TRANSPORTS, FollowingReceiver, open_sender
from protocol.wire.messages import Canary, WeightsComing, WeightsReady

_CANARY = Canary((), (), 0.0)
"""Of its endpoint only the host counts: no learner listens, weights have a port of their own."""


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
    """What verifying adds at the reader: part of `fetch_seconds`. The writer hashes each piece
    while it is in its cache to be copied, and over `shm` the reader hashes behind it while it
    writes: both are part of `publish_seconds`."""
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


def _protocol(folder: Path) -> ProtocolConfig:
    return ProtocolConfig(endpoint="tcp://127.0.0.1:1", weights_store=f"file://{folder}/store")


def _measure(transport: str, gigabytes: float, repeats: int, folder: Path) -> SyncResult:
    shapes = _shapes(gigabytes)
    source = {
        name: as_tensor(dtype, shape, np.random.default_rng(0).bytes(2 * int(np.prod(shape))))
        for name, (dtype, shape) in shapes.items()
    }
    run_id = f"bench-{uuid.uuid4().hex[:8]}"
    sender = open_sender(transport, _protocol(folder), run_id, folder, shapes)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    reader = context.Process(target=_reader, args=(transport, run_id, folder, there))
    reader.start()
    there.close()  # so that the end of the reader is the end of the pipe
    rows = []
    try:
        for version in range(repeats + 1):
            start = time.perf_counter()
            manifest = sender.publish(
                version,
                source.items(),
                _CANARY,
                ["reader"],
                lambda coming: here.send(msgspec.msgpack.encode(coming)),
            )
            published = time.perf_counter()
            here.send(msgspec.msgpack.encode(WeightsReady(manifest)))
            if not here.poll(300):
                raise TimeoutError("the reading process did not answer within 300 s")
            try:
                fetch, pause, hashing, extra = here.recv()
            except EOFError:
                raise RuntimeError("the reading process died: see its words above") from None
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


def _reader(transport: str, run_id: str, folder: Path, pipe: Connection) -> None:
    receiver = FollowingReceiver(_protocol(folder), run_id, folder)
    model: dict[str, torch.Tensor] = {}
    while (message := pipe.recv()) is not None:
        news = msgspec.msgpack.decode(message, type=WeightsComing | WeightsReady)
        if isinstance(news, WeightsComing):
            receiver.expect(news)
            continue
        manifest = news.manifest
        start = time.perf_counter()
        tensors = receiver.read(manifest)
        fetched = time.perf_counter()
        _apply(tensors, model)
        applied = time.perf_counter()
        # Once more, outside what is timed: without hashing what is here already.
        receiver.read(manifest, verify=False)
        end = time.perf_counter()
        receiver.serves(manifest)
        hashing = max(0.0, fetched - start - (end - applied)) if transport == "shm" else 0.0
        if transport != "shm":  # fetching and hashing are one: hash again what is here
            receiver.read(manifest)
            again = time.perf_counter()
            hashing = again - end - (end - applied)
            end = again
        pipe.send((fetched - start, applied - fetched, hashing, end - applied))
    receiver.close()


def _apply(tensors: dict[str, Tensor], model: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        flat = torch.frombuffer(tensor.data, dtype=torch.bfloat16)
        if name not in model:
            model[name] = torch.empty_like(flat)
        model[name].copy_(flat)


def _copy_seconds(source: dict[str, Tensor]) -> float:
    into = {name: np.zeros(tensor.data.nbytes, np.uint8) for name, tensor in source.items()}

    def copy() -> None:
        for name, tensor in source.items():
            into[name][:] = np.frombuffer(tensor.data, np.uint8)

    copy()
    return min(_timed(copy) for _ in range(3))


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _run_models(options: argparse.Namespace) -> int:
    threads = torch.get_num_threads()
    machine = f"CPU, {threads} threads, torch {torch.__version__}, {datetime.now(UTC).date()}"
    rows = []
    for model in options.models:
        for way in options.ways:
            rows.append(measure(model, way, options.dtype, options.repeats))
            Console().print(table(rows)[-1])
            if options.page is not None:
                write_page(options.page, rows, machine)
    print(json.dumps({"results": [msgspec.to_builtins(one) for one in rows]}), flush=True)
    return 0


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(prog="dynatok bench sync", description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0], help="sizes, bf16")
    parser.add_argument(
        "--transports", nargs="+", choices=TRANSPORTS, default=list(TRANSPORTS), help="which"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=existing_folder, help="where files are written (the disk matters)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        help=f"publish these models instead, with the learner's own code: names, or {RANDOM_1B}",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="with --models")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="with --models"
    )
    parser.add_argument("--page", type=Path, help="with --models: write them into this page")
    options = parser.parse_args(arguments)
    if options.page is not None and not options.models:
        parser.error("--page goes with --models: bytes alone have no page")
    if options.models:
        return _run_models(options)
    results = run(
        tuple(options.gigabytes), tuple(options.transports), options.repeats, options.folder
    )
    card = Table(title="weight sync")
    for column in ("transport", "GB", "seconds", "floor", "publish", "fetch", "paused", "hash"):
        card.add_column(column, justify="left" if column == "transport" else "right")
    for one in results:
        card.add_row(
            one.transport,
            f"{one.gigabytes:.2f}",
            f"{one.seconds:.2f} ({one.gb_per_s:.1f} GB/s)",
            f"{one.floor_seconds:.2f}",
            f"{one.publish_seconds:.2f}",
            f"{one.fetch_seconds:.2f}",
            f"{one.pause_seconds:.2f} ({one.pause_seconds / one.seconds:.0%})",
            f"{one.hash_seconds:.2f} ({one.hash_share:.0%})",
        )
    Console().print(card)
    print(msgspec.json.encode({"results": results}).decode(), flush=True)
    return 0
