"""Bytes that nobody sent: refused, counted, at once, with flat memory."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections import Counter

import msgspec
import numpy as np
import pytest
import xxhash

from dynatok_online.trajectory import RESPONSE, Edit, Pass, Reuse, Trajectory, VersionRun
from protocol.wire.codec import decode_actor, decode_learner, encode
from protocol.wire.envelope import Rejected, Sealer, unseal
from protocol.wire.messages import (
    Backlog,
    Canary,
    Heartbeat,
    Hello,
    TensorSpec,
    TrajectoryMessage,
    WeightManifest,
    WeightsReady,
)

LIMIT = 100_000


def frames() -> list[bytes]:
    count = 40
    trajectory = Trajectory(
        trajectory_id="t1",
        pieces=tuple(np.arange(n, dtype=np.int32) for n in (5, 0, 3)),
        response=np.arange(count, dtype=np.int32),
        logprobs=np.linspace(-3, 0, count).astype(np.float32),
        passes=(
            Pass(
                layout=(0, 1, RESPONSE),
                states={"a": "b"},
                start=0,
                stop=30,
                num_cached_tokens=0,
                weight_versions=(VersionRun(0, 30),),
            ),
            Pass(
                layout=(0, 2, RESPONSE),
                states={"a": "c"},
                start=30,
                stop=count,
                num_cached_tokens=3,
                reuse=(Reuse(0, 0, 3),),
                scores={"a": 0.5},
            ),
        ),
        edits=(Edit("a", "c", 28, 30, "schedule"),),
    )
    manifest = WeightManifest(
        1,
        "shm",
        0,
        64,
        (TensorSpec("w", "F32", (4,), 0, 16, 5),),
        Canary(((1, 2),), ((-1.0,),), 0.1),
    )
    seal = Sealer("run", "actor-0").seal
    return [
        seal(encode(TrajectoryMessage(trajectory)), 3, 1),
        seal(encode(Hello("tiny", 32, 9, (Backlog(3, 1),))), 3),
        seal(encode(Heartbeat(1, 2)), 3),
        seal(encode(WeightsReady(manifest)), 3),
    ]


FRAMES = frames()
LENGTHS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\x40\0\0\0\1",
]


def mutated(draw: random.Random) -> tuple[bytes, bool]:
    """Changed bytes, and whether someone who knows the format sealed them again."""
    data = bytearray(draw.choice(FRAMES))
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data))
        kind = draw.randrange(7)
        if kind <= 2:
            data[at] = draw.randrange(256)
        elif kind == 3:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 4:
            del data[at : at + draw.randint(1, 30)]
        elif kind == 5:
            data[at:at] = draw.randbytes(draw.randint(1, 30))
        else:
            lie = draw.choice(LENGTHS)
            data[at : at + len(lie)] = lie
        if len(data) < 60:
            break
    resealed = draw.random() < 0.7 and len(data) > 60
    if resealed:
        data[:4] = b"DTOK"
        if draw.random() < 0.8:
            data[12:16] = FRAMES[0][12:16]
            data[32:48] = struct.pack("<Q", len(data) - 58) + FRAMES[0][40:48]
        data[4:12] = struct.pack("<Q", xxhash.xxh3_64_intdigest(data[12:]))
    return bytes(data), resealed


def fuzz(count: int, seed: int) -> Counter[str]:
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        frame, resealed = mutated(draw)
        start = time.perf_counter()
        try:
            envelope = unseal(frame, "run", LIMIT)
        except Rejected as rejected:
            outcomes[rejected.cause] += 1
            continue
        assert resealed or frame in FRAMES, "accepted what nobody sent"
        for decode in (decode_actor, decode_learner):
            try:
                message = decode(envelope.payload)
            except Rejected as rejected:
                outcomes[rejected.cause] += 1
            else:
                outcomes["read"] += 1
                # Whoever seals it himself is a peer; what he says must still be well formed.
                msgspec.to_builtins(message, enc_hook=np.ndarray.tolist)
        assert time.perf_counter() - start < 1.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50 * 1024, f"memory grew by {grown} KiB"
    return outcomes


def check(outcomes: Counter[str]) -> None:
    for cause in ("checksum", "content", "length", "read"):
        assert outcomes[cause] > 0, outcomes


def test_mutated_envelopes() -> None:
    check(fuzz(15_000, 1))


@pytest.mark.slow
def test_200_000_mutated_envelopes() -> None:
    check(fuzz(200_000, 2))


def test_random_bytes() -> None:
    draw = random.Random(3)
    for _ in range(3000):
        data = draw.randbytes(draw.randint(0, 300))
        with pytest.raises(Rejected):
            unseal(data, "run", LIMIT)
        for decode in (decode_actor, decode_learner):
            with pytest.raises(Rejected):
                decode(data)
