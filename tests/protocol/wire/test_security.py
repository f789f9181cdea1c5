"""What strangers and replays get from a learner's socket: nothing, counted, with flat memory."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from dynatok_online.trajectory import Trajectory
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.learner_channel import LearnerChannel
from protocol.wire.codec import encode
from protocol.wire.envelope import Sealer
from protocol.wire.messages import Backlog, Hello, TrajectoryMessage

CONFIG = ProtocolConfig(
    endpoint="tcp://127.0.0.1:0", heartbeat_seconds=0.05, dead_after_seconds=5.0, linger_seconds=0.1
)
HELLO = Hello("tiny", 32, 1)


@pytest.fixture
def learner() -> Iterator[LearnerChannel]:
    channel = LearnerChannel(CONFIG, "run")
    channel.start()
    yield channel
    channel.close()


def trajectory(name: str) -> TrajectoryMessage:
    return TrajectoryMessage(
        Trajectory(
            trajectory_id=name,
            pieces=(),
            response=np.zeros(0, np.int32),
            logprobs=np.zeros(0, np.float32),
            passes=(),
        )
    )


def works(learner: LearnerChannel) -> bool:
    """Whether an honest actor is served."""

    async def run() -> bool:
        config = ProtocolConfig(endpoint=learner.endpoint, connect_seconds=5.0)
        actor = ActorChannel(config, "run", "honest", HELLO)
        await actor.start()
        await actor.acquire()
        actor.send(trajectory("t"))
        left = await actor.drain(5.0)
        await actor.close()
        return left == 0

    return asyncio.run(run())


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def connect(learner: LearnerChannel) -> socket.socket:
    host, port = learner.endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def closed(peer: socket.socket) -> bool:
    """Whether the other side hangs up within five seconds."""
    peer.settimeout(5)
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 99, b"\0" * 64])
def test_a_port_scanner_is_no_peer(learner: LearnerChannel, sent: bytes) -> None:
    with connect(learner) as scanner:
        scanner.sendall(sent)
        assert works(learner)
    assert {peer.actor for peer in learner.peers()} == {"honest"}


def test_a_length_of_ten_gigabytes_is_hung_up_on(learner: LearnerChannel) -> None:
    """Past the handshake, as libzmq itself speaks it (ZMTP 3.0)."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with connect(learner) as liar:
        liar.sendall(greeting)
        liar.sendall(b"\x04" + bytes([len(ready)]) + ready)
        before = memory()
        liar.sendall(b"\x02" + struct.pack(">Q", 10 * 2**30) + b"x" * 100_000)
        assert closed(liar)
    assert memory() - before < 20 * 1024
    assert works(learner)


def test_a_payload_that_claims_gigabytes_costs_nothing(learner: LearnerChannel) -> None:
    lies = [b"\xdd\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
    context = zmq.Context()
    liar = context.socket(zmq.DEALER)
    liar.connect(learner.endpoint)
    before = memory()
    for lie in lies:
        liar.send(Sealer("run", "liar").seal(lie, 1))
    assert until(lambda: learner.refusals.counts.get("content", 0) == len(lies))
    assert memory() - before < 20 * 1024
    liar.close(0)
    context.term()
    assert works(learner)


def test_a_replay_of_an_old_epoch_is_not_taken_in(learner: LearnerChannel) -> None:
    """All of what an actor once sent, recorded and sent again after it was started anew."""
    seal = Sealer("run", "actor").seal
    recorded = [
        seal(encode(Hello("tiny", 32, 1, (Backlog(5, 1),))), 5),
        seal(encode(trajectory("old")), 5, 1),
    ]
    context = zmq.Context()

    def send(frames: list[bytes]) -> zmq.Socket[bytes]:
        peer = context.socket(zmq.DEALER)
        peer.connect(learner.endpoint)
        for frame in frames:
            peer.send(frame)
        return peer

    first = send(recorded)
    assert until(lambda: learner.stored == 1)
    second = send([seal(encode(Hello("tiny", 32, 2, (Backlog(9, 1),))), 9)])
    assert until(lambda: [peer.epoch for peer in learner.peers()] == [9])
    replay = send(recorded)
    assert until(lambda: learner.refusals.counts.get("old_epoch", 0) >= 1)
    # And from within the new connection.
    second.send(recorded[1])
    assert until(lambda: learner.refusals.counts["old_epoch"] >= 2)
    assert learner.stored == 1
    for peer in (first, second, replay):
        peer.close(0)
    context.term()
    assert works(learner)
