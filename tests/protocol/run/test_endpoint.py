"""Nobody but the learner chooses its port, and actors find it wherever it listens."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

import msgspec
import pytest

from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import FILE, find_endpoint, has_port, write_endpoint
from protocol.wire.messages import Hello

ANY = "tcp://127.0.0.1:0"
FAST = ProtocolConfig(
    endpoint=ANY,
    heartbeat_seconds=0.05,
    dead_after_seconds=0.6,
    connect_seconds=10.0,
    linger_seconds=0.2,
)


def test_a_port_completes_the_address_that_was_configured(tmp_path):
    assert find_endpoint(tmp_path, "tcp://10.0.0.1:5555") == "tcp://10.0.0.1:5555"
    assert find_endpoint(tmp_path, "ipc:///tmp/x") == "ipc:///tmp/x"
    assert not has_port(ANY)
    assert find_endpoint(tmp_path, ANY) is None
    write_endpoint(tmp_path, "tcp://8.8.8.8:4321")  # only the number is taken from the file
    assert find_endpoint(tmp_path, ANY) == "tcp://127.0.0.1:4321"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"endpoint": "tcp://x:99999"}', '{"endpoint": 3}']
)
def test_what_is_no_address_is_not_yet_one(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert find_endpoint(tmp_path, ANY) is None


def actor_of(folder) -> ActorChannel:
    where = partial(find_endpoint, folder, ANY)
    return ActorChannel(FAST, folder.name, "actor", Hello("tiny", 32, 1), where=where)


def learner_of(folder) -> LearnerChannel:
    learner = LearnerChannel(FAST, folder.name, before=find_endpoint(folder, ANY))
    learner.start()
    write_endpoint(folder, learner.endpoint)
    return learner


def test_eight_runs_that_begin_at_once_all_find_their_own(tmp_path):
    """Actors first: each waits until its learner has bound a port."""
    folders = [tmp_path / f"run-{number}" for number in range(8)]

    async def run() -> None:
        actors = [actor_of(folder) for folder in folders]
        waiting = [asyncio.create_task(actor.start()) for actor in actors]
        await asyncio.sleep(0.1)
        learners = await asyncio.gather(*(asyncio.to_thread(learner_of, one) for one in folders))
        try:
            await asyncio.gather(*waiting)
            assert all(actor.connected for actor in actors)
            assert len({learner.endpoint for learner in learners}) == 8
            for learner in learners:
                assert [peer.actor for peer in learner.peers()] == ["actor"]
        finally:
            await asyncio.gather(*(actor.close() for actor in actors))
            for learner in learners:
                learner.close()

    asyncio.run(run())


@pytest.mark.parametrize("taken", [False, True])
def test_a_learner_that_is_started_again_is_found_again(tmp_path, taken):
    """On its old port; or on another one, where somebody took the old one meanwhile."""

    async def run() -> None:
        first = learner_of(tmp_path)
        actor = actor_of(tmp_path)
        await actor.start()
        await asyncio.to_thread(first.close)
        port = int(first.endpoint.rpartition(":")[2])
        with socket.socket() as other:
            if taken:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", port))
                other.listen()
            second = await asyncio.to_thread(learner_of, tmp_path)
            try:
                assert (second.endpoint == first.endpoint) is not taken
                async with asyncio.timeout(5):
                    while not (second.peers() and actor.connected):
                        await asyncio.sleep(0.02)
            finally:
                await actor.close()
                second.close()

    asyncio.run(run())


def test_a_learner_that_never_says_where_it_is_is_an_error_in_time(tmp_path):
    async def run() -> None:
        config = msgspec.structs.replace(FAST, connect_seconds=0.3)
        where = partial(find_endpoint, tmp_path, ANY)
        actor = ActorChannel(config, "run", "actor", Hello("tiny", 32, 1), where=where)
        with pytest.raises(ConnectionError, match="no answer from the learner at no known address"):
            await actor.start()

    asyncio.run(run())
