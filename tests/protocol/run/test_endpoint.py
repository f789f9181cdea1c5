"""Nobody but the learner chooses its port, and actors find it wherever it listens."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import msgspec
import pytest

from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import (
    FILE,
    find_endpoint,
    has_port,
    to_bind,
    to_tell,
    write_endpoint,
)
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


def test_the_host_comes_from_the_file_only_where_none_was_configured(tmp_path):
    write_endpoint(tmp_path, "tcp://node-7.cluster:4321")
    assert find_endpoint(tmp_path, "tcp://*:0") == "tcp://node-7.cluster:4321"
    assert find_endpoint(tmp_path, "tcp://*:4321") == "tcp://node-7.cluster:4321"
    assert find_endpoint(tmp_path, ANY) == "tcp://127.0.0.1:4321"
    assert find_endpoint(tmp_path, "ipc://*") is None
    write_endpoint(tmp_path, "tcp://[fe80::1%eth0]:4321")
    assert find_endpoint(tmp_path, "tcp://[::]:0") == "tcp://[fe80::1%eth0]:4321"
    write_endpoint(tmp_path, "tcp://a b:4321")
    assert find_endpoint(tmp_path, "tcp://*:0") is None


def test_an_interface_is_an_address_of_this_machine():
    (address,) = to_bind("tcp://*:0", "lo")
    assert address == "tcp://127.0.0.1:0"
    assert to_tell("tcp://127.0.0.1:99", "tcp://*:0", "lo") == "tcp://127.0.0.1:99"
    assert to_tell("tcp://0.0.0.0:99", "tcp://*:0") == f"tcp://{socket.gethostname()}:99"
    with pytest.raises(ValueError, match="no 'ib99'; it has"):
        to_bind("tcp://*:0", "ib99")


def test_a_socket_without_keys_is_in_a_folder_of_this_user_alone(tmp_path):
    learner = learner_of(tmp_path, "ipc://*")
    folder = Path(learner.endpoint.removeprefix("ipc://")).parent
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        learner.close()
    assert not folder.exists()


def actor_of(folder, endpoint=ANY) -> ActorChannel:
    config = msgspec.structs.replace(FAST, endpoint=endpoint)
    where = partial(find_endpoint, folder, endpoint)
    return ActorChannel(config, folder.name, "actor", Hello("tiny", 32, 1), where=where)


def learner_of(folder, endpoint=ANY) -> LearnerChannel:
    config = msgspec.structs.replace(FAST, endpoint=endpoint)
    learner = LearnerChannel(config, folder.name, before=find_endpoint(folder, endpoint))
    learner.start()
    write_endpoint(folder, learner.endpoint)
    return learner


@pytest.mark.parametrize("endpoint", [ANY, "ipc://*"])
def test_eight_runs_that_begin_at_once_all_find_their_own(tmp_path, endpoint):
    """Actors first: each waits until its learner has bound an address."""
    folders = [tmp_path / f"run-{number}" for number in range(8)]

    async def run() -> None:
        actors = [actor_of(folder, endpoint) for folder in folders]
        waiting = [asyncio.create_task(actor.start()) for actor in actors]
        await asyncio.sleep(0.1)
        learners = await asyncio.gather(
            *(asyncio.to_thread(learner_of, one, endpoint) for one in folders)
        )
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


def test_over_ipc_a_learner_that_was_killed_is_found_again(tmp_path):
    """kill -9 leaves its socket; the next one takes it, or makes another where it is gone."""

    async def run() -> None:
        first = await asyncio.to_thread(learner_of, tmp_path, "ipc://*")
        actor = actor_of(tmp_path, "ipc://*")
        await actor.start()
        await asyncio.to_thread(first.close)
        Path(first.endpoint.removeprefix("ipc://")).parent.mkdir(mode=0o700)
        second = await asyncio.to_thread(learner_of, tmp_path, "ipc://*")
        assert second.endpoint == first.endpoint
        await asyncio.to_thread(second.close)
        third = await asyncio.to_thread(learner_of, tmp_path, "ipc://*")
        assert third.endpoint != first.endpoint
        try:
            async with asyncio.timeout(5):
                while not (third.peers() and actor.connected):
                    await asyncio.sleep(0.02)
        finally:
            await actor.close()
            third.close()

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
