"""How small, how fast and how durable trajectories travel: `dynatok bench wire`.

Codec: one trajectory of 8k tokens with logprobs, four states, without sockets. Durable: an
actor process with its journal sends trajectories of 1k tokens to a learner with its journal,
over loopback; one counts when its acknowledgement, given after the learner's fsync, is back.
Beside it stands the floor: the same bytes written to the same disk twice, in large pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
import timeit
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks._consumer import Consumer
from benchmarks._folder import existing_folder
from dynatok_online.trajectory import RESPONSE, Edit, Pass, Reuse, Trajectory, VersionRun
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.delivery.learner_channel import LearnerChannel
from protocol.wire.codec import decode_actor, encode
from protocol.wire.envelope import Sealer, unseal
from protocol.wire.messages import Hello, TrajectoryMessage

_RUN = "bench-wire"
_CREDITS = 1024
_HELLO = Hello("none", 32, 0)


class WireResult(msgspec.Struct):
    """What was measured; times are the best of many, in microseconds."""

    bytes_8k: int
    encode_us: float
    decode_us: float
    seal_us: float
    """Header and checksum."""
    unseal_us: float
    validate_us: float
    """Part of `decode_us`: the trajectory's own checks."""
    durable_per_s: float
    durable_mb_per_s: float
    floor_per_s: float
    """Trajectories per second if both journals were nothing but writes and fsyncs."""
    actor_cpu_us: float
    """CPU time per durable trajectory, all threads: what the rate would be on a machine with
    nothing else to do is about one second by the larger of these two."""
    learner_cpu_us: float
    commits: int
    """fsyncs of the learner: so many trajectories shared one."""
    trajectories: int


def sample(tokens: int, states: int = 4, prompt: int = 256) -> Trajectory:
    """A trajectory of `tokens` response tokens whose prompt had `states` states."""
    step = tokens // states
    draw = np.random.default_rng(0)
    return Trajectory(
        trajectory_id="0123456789abcdef",
        pieces=(
            draw.integers(0, 150_000, prompt, dtype=np.int32),
            *(draw.integers(0, 150_000, 32, dtype=np.int32) for _ in range(states)),
        ),
        response=draw.integers(0, 150_000, tokens, dtype=np.int32),
        logprobs=-draw.random(tokens, dtype=np.float32),
        passes=tuple(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={"style": f"requirement number {k}"},
                start=k * step,
                stop=(k + 1) * step if k + 1 < states else tokens,
                num_cached_tokens=prompt,
                reuse=(Reuse(0, 0, prompt),) if k else (),
                weight_versions=(VersionRun(12, (step if k + 1 < states else tokens - k * step)),),
                finish_reason="edit",
                scores={"style": 0.5},
            )
            for k in range(states)
        ),
        edits=tuple(
            Edit("style", f"requirement number {k}", k * step - 1, k * step, "schedule")
            for k in range(1, states)
        ),
        block_size=32,
    )


def run(trajectories: int = 20_000, folder: Path | None = None) -> WireResult:
    """Measure everything. `folder`: where the journals are written (default: temporary)."""
    message = TrajectoryMessage(sample(8192))
    payload = encode(message)
    sealer = Sealer(_RUN, "actor-0")
    frame = sealer.seal(payload, 1, 1)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        seconds, cpu, commits, nbytes = _durable(trajectories, Path(name))
        floor = _floor(trajectories, nbytes, Path(name))
    return WireResult(
        bytes_8k=len(frame),
        encode_us=_best(lambda: encode(message)),
        decode_us=_best(lambda: decode_actor(payload)),
        seal_us=_best(lambda: sealer.seal(payload, 1, 1)),
        unseal_us=_best(lambda: unseal(frame, _RUN, 2**24)),
        validate_us=_best(message.trajectory.__post_init__),
        durable_per_s=trajectories / seconds,
        durable_mb_per_s=trajectories * nbytes / seconds / 1e6,
        floor_per_s=trajectories / floor,
        actor_cpu_us=cpu[0] / trajectories * 1e6,
        learner_cpu_us=cpu[1] / trajectories * 1e6,
        commits=commits,
        trajectories=trajectories,
    )


def _best(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=50, repeat=400)) / 50 * 1e6


class _Counting(JournaledStore):
    commits = 0

    def commit(self) -> None:
        self.commits += 1
        super().commit()


def _durable(count: int, folder: Path) -> tuple[float, tuple[float, float], int, int]:
    store = _Counting(folder / "inbox", _RUN)
    channel = LearnerChannel(
        ProtocolConfig(endpoint="tcp://127.0.0.1:0", credits=_CREDITS),
        _RUN,
        store=store,
        receipts=store.receipts,
    )
    channel.start()
    consumer = Consumer(channel)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    actor = context.Process(target=_actor, args=(channel.endpoint, count, folder / "outbox", there))
    actor.start()
    before = time.process_time()
    try:
        if not here.poll(300):
            raise TimeoutError("the sending process did not finish within 300 s")
        seconds, cpu, nbytes = here.recv()
        here_cpu = time.process_time() - before
    finally:
        actor.join(10)
        actor.kill()
        consumer.close()
        channel.close()
        store.close()
    if channel.stored != count:
        raise AssertionError(f"{channel.stored} of {count} trajectories are held")
    return seconds, (cpu, here_cpu), store.commits, nbytes


def _actor(endpoint: str, count: int, folder: Path, result: Connection) -> None:
    message = TrajectoryMessage(sample(1024))

    async def send() -> tuple[float, float]:
        outbox = JournaledOutbox(folder, _RUN, "actor-0")
        channel = ActorChannel(
            ProtocolConfig(endpoint=endpoint), _RUN, "actor-0", _HELLO, outbox=outbox
        )
        await channel.start()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            await channel.acquire()
            channel.send(message)
        left = await channel.drain(60)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if left:
            raise AssertionError(f"{left} trajectories were not acknowledged within 60 s")
        await channel.close()
        outbox.close()
        return seconds, cpu

    result.send((*asyncio.run(send()), len(encode(message))))


def _floor(count: int, nbytes: int, folder: Path) -> float:
    piece = os.urandom(nbytes) * 256
    start = time.perf_counter()
    for name in ("floor-a", "floor-b"):
        with (folder / name).open("wb", buffering=0) as file:
            for _ in range(max(1, count // 256)):
                file.write(piece)
                os.fdatasync(file.fileno())
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(prog="dynatok bench wire", description=__doc__)
    parser.add_argument("--trajectories", type=int, default=20_000, help="durable ones to send")
    parser.add_argument(
        "--folder", type=existing_folder, help="where journals are written (the disk matters)"
    )
    options = parser.parse_args(arguments)
    result = run(options.trajectories, options.folder)
    table = Table(title="wire")
    for column in ("what", "measured", "bound"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("8k tokens with logprobs", f"{result.bytes_8k:,} bytes", "65,536 (the arrays)")
    table.add_row("encode", f"{result.encode_us:.1f} µs", "")
    table.add_row("decode (arrays not copied)", f"{result.decode_us:.1f} µs", "")
    table.add_row("  of which checks", f"{result.validate_us:.1f} µs", "")
    table.add_row("seal, unseal (checksum)", f"{result.seal_us:.1f}, {result.unseal_us:.1f} µs", "")
    table.add_row(
        "durable, acknowledged, 1k tokens",
        f"{result.durable_per_s:,.0f} /s ({result.durable_mb_per_s:.0f} MB/s)",
        f"{result.floor_per_s:,.0f} /s (writes alone)",
    )
    table.add_row(
        "  CPU, actor and learner",
        f"{result.actor_cpu_us:.0f}, {result.learner_cpu_us:.0f} µs",
        "",
    )
    table.add_row("trajectories per fsync", f"{result.trajectories / result.commits:.0f}", "")
    Console().print(table)
    print(msgspec.json.encode(result).decode(), flush=True)
    return 0
