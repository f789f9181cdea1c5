"""Learner and actor over IPv6: trajectories, credits and weights, with keys."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import numpy as np
import pytest

from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import find_endpoint, to_tell, write_endpoint
from protocol.weights.payload import as_tensor
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.keys import make_keys
from protocol.wire.messages import Canary, Hello, WeightsReady
from tests.protocol.delivery.test_channels import next_of, trajectory


def _speaks_v6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _speaks_v6(), reason="no IPv6 on this machine")


@pytest.mark.parametrize("endpoint", ["tcp://[::1]:0", "tcp://[::]:0"])
def test_trajectories_and_weights_travel_over_ipv6(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the run folder, as between machines: the learner binds, and says where it is."""
    monkeypatch.setenv("DYNATOK_HOST", "::1")
    make_keys(tmp_path / "keys")
    config = ProtocolConfig(
        endpoint=endpoint, keys=str(tmp_path / "keys"), credits=4, linger_seconds=0.2
    )
    learner = LearnerChannel(config, "run")
    learner.start()
    write_endpoint(tmp_path, to_tell(learner.endpoint, config.endpoint, config.interface))
    where = find_endpoint(tmp_path, config.endpoint)
    assert where is not None
    assert where.startswith("tcp://[::1]:")
    payload = np.arange(5_000_003, dtype=np.uint8)
    sender = ZmqSender(config, payload.nbytes + 4096)
    receiver = ZmqReceiver(config, 5.0, lambda: where, "run")

    async def run() -> None:
        actor = ActorChannel(config, "run", "actor", Hello("tiny", 32, 1), where=lambda: where)
        await actor.start()
        for name in "abc":
            await actor.acquire()
            actor.send(trajectory(name))
        assert await actor.drain(5.0) == 0
        tensors = iter([("w", as_tensor("U8", payload.shape, payload))])
        learner.announce(WeightsReady(sender.publish(0, tensors, Canary((), (), 0.0), ["actor"])))
        async with asyncio.timeout(5):
            message = await actor.receive()
        assert isinstance(message, WeightsReady)
        got = await asyncio.to_thread(receiver.read, message.manifest)
        assert bytes(got["w"].data) == payload.tobytes()
        await actor.close()

    try:
        asyncio.run(run())
        names = [next_of(learner, type(trajectory())) for _ in range(3)]
        assert [one.sequence for one in names] == [1, 2, 3]
    finally:
        receiver.close()
        sender.close()
        learner.close()
    assert not learner.refusals.counts
    assert not sender.refusals.counts
