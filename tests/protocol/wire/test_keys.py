"""With keys, only those who have them are answered."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel, Disconnected
from protocol.delivery.learner_channel import LearnerChannel
from protocol.weights.base import WeightsError
from protocol.weights.payload import as_tensor
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.keys import load, make_keys
from protocol.wire.messages import Canary, Hello


def config(keys: Path | None, endpoint: str = "tcp://127.0.0.1:0") -> ProtocolConfig:
    return ProtocolConfig(
        endpoint=endpoint,
        heartbeat_seconds=0.05,
        dead_after_seconds=0.3,
        connect_seconds=0.7,
        linger_seconds=0.0,
        keys=None if keys is None else str(keys),
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_keys(folder)
    return folder


def test_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    files = make_keys(tmp_path / "keys")
    assert sorted(path.name for path in files) == [
        "actor.key",
        "actor.key_secret",
        "learner.key",
        "learner.key_secret",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    with pytest.raises(ValueError, match=r"already has learner\.key"):
        make_keys(tmp_path / "keys")


def test_a_key_that_cannot_be_read_is_named(keys: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nobody.key"):
        load(keys, "nobody", secret=False)
    (keys / "actor.key_secret").chmod(0o644)
    with pytest.raises(ValueError, match="run chmod 600"):
        load(keys, "actor", secret=True)
    (keys / "actor.key").write_text("not a key")
    with pytest.raises(ValueError, match="cannot read"):
        load(keys, "actor", secret=False)


def test_the_right_key_is_let_in_and_others_get_nothing(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_keys(other)
    # A stranger who knows the learner's public key, but not an actor's secret.
    (other / "learner.key").write_bytes((keys / "learner.key").read_bytes())

    async def run() -> None:
        learner = LearnerChannel(config(keys), "run")
        learner.start()
        hello = Hello("tiny", 32, 1)
        good = ActorChannel(config(keys, learner.endpoint), "run", "good", hello)
        await good.start()
        for name, theirs in (("wrong", other), ("none", None)):
            bad = ActorChannel(config(theirs, learner.endpoint), "run", name, hello)
            with pytest.raises(Disconnected):
                await bad.start()
        assert [peer.actor for peer in learner.peers()] == ["good"]
        assert learner.refusals.counts["key"] >= 1
        await good.close()
        learner.close()

    asyncio.run(run())


def test_a_weight_stream_asks_for_the_key_too(keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_keys(other)
    (other / "learner.key").write_bytes((keys / "learner.key").read_bytes())
    sender = ZmqSender(config(keys), 4096)
    manifest = sender.publish(0, {"a": as_tensor("U8", (3,), b"abc")}.items(), Canary((), (), 0.0))
    good = ZmqReceiver(config(keys), 2.0)
    assert bytes(good.read(manifest)["a"].data) == b"abc"
    bad = ZmqReceiver(config(other), 0.3, run_id="not-fetched-here")
    start = time.monotonic()
    with pytest.raises(WeightsError, match="nothing came"):
        bad.read(manifest)
    assert time.monotonic() - start < 3
    good.close()
    bad.close()
    sender.close()
