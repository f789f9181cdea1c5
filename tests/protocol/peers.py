"""A learner and actors without engines, each a process of its own, that write down what happens.

    python -m tests.protocol.peers learner RUN_DIR ENDPOINT KEYS INTERFACE
    python -m tests.protocol.peers actor RUN_DIR ENDPOINT KEYS NAME

Everything of the protocol is real: sockets, CURVE, journals, credits, weights by zmq. Each line of
`RUN_DIR/NAME.jsonl` is one event. `RUN_DIR/enough` makes actors send nothing more; the learner
ends once both have said good-bye, or `RUN_DIR/stop.json` asks for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.delivery import Consumed
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import find_endpoint, to_tell, write_endpoint
from protocol.run.json_files import write_json
from protocol.run.stop import asked_to_stop
from protocol.weights.base import NoFreeSlot
from protocol.weights.payload import as_tensor
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.messages import (
    Bye,
    Canary,
    Hello,
    TrajectoryMessage,
    WeightsApplied,
    WeightsReady,
    WeightsRejected,
)

_MIB = 2**20
_WEIGHTS = 2 * _MIB
_PLACE = ("SLURMD_NODENAME", "SLURM_GPUS_ON_NODE")
_EVERY = 5.0
"""Seconds between two versions."""


class Log:
    """Events, as they happen."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._file = (run_dir / f"{name}.jsonl").open("a", buffering=1)

    def __call__(self, event: str, **more: Any) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), "event": event, **more}) + "\n")


def read(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """The events of one process."""
    lines = (run_dir / f"{name}.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def learner(run_dir: Path, config: ProtocolConfig, actors: int = 2) -> None:
    """Store, take, publish."""
    log = Log(run_dir, "learner")
    before = {e["id"] for e in read(run_dir, "learner") if e["event"] == "got"}
    store = JournaledStore(run_dir / "journal" / "learner", run_dir.name)
    got = len(before)
    for held in store.replay(Consumed()):  # acknowledged, and not taken by a process before this
        assert isinstance(held.message, TrajectoryMessage)
        if held.message.trajectory.trajectory_id not in before:
            log("got", id=held.message.trajectory.trajectory_id)
            got += 1
    channel = LearnerChannel(config, run_dir.name, store=store, receipts=store.receipts)
    channel.start()
    write_endpoint(run_dir, to_tell(channel.endpoint, config.endpoint, config.interface))
    sender = ZmqSender(config, _WEIGHTS + _MIB)
    version, due, gone = 0, 0.0, 0
    while gone < actors and asked_to_stop(run_dir) is None:
        if (run_dir / "enough").exists():
            write_json(run_dir / "learner.json", {"finished": True})
        if time.monotonic() > due:
            due = time.monotonic() + _EVERY
            fill = np.full(_WEIGHTS, version % 251, np.uint8)
            peers = [peer.actor for peer in channel.peers()]
            try:
                manifest = sender.publish(
                    version,
                    iter([("w", as_tensor("U8", (_WEIGHTS,), fill))]),
                    Canary((), (), 0.0),
                    peers,
                )
            except NoFreeSlot:
                log("postponed")
            else:
                channel.announce(WeightsReady(manifest))
                log("published", version=version, peers=len(peers))
                version += 1
        event = channel.receive(0.2)
        if event is None:
            continue
        message = event.message
        if isinstance(message, TrajectoryMessage):
            log("got", id=message.trajectory.trajectory_id)
            channel.accept(event)
            got += 1
        elif isinstance(message, Hello):
            sender.joined(event.actor)
        elif isinstance(message, WeightsApplied):
            sender.applied(event.actor, message.version)
        elif isinstance(message, WeightsRejected):
            log("rejected", actor=event.actor, reason=message.reason)
            sender.rejected(event.actor, message.version)
        else:
            log("gone", actor=event.actor, how=type(message).__name__)
            sender.left(event.actor)
            gone += isinstance(message, Bye)
    write_json(run_dir / "learner.json", {"learner_steps": got, "finished": gone >= actors})
    channel.close()
    sender.close()


async def actor(run_dir: Path, config: ProtocolConfig, name: str) -> None:
    """Send one trajectory after the other, and take weights."""
    log = Log(run_dir, name)
    log("began", **{name: os.environ.get(name) for name in _PLACE})
    outbox = JournaledOutbox(run_dir / "journal" / name, run_dir.name, name)
    where = partial(find_endpoint, run_dir, config.endpoint)
    channel = ActorChannel(
        config, run_dir.name, name, Hello("none", 32, 0), outbox=outbox, where=where
    )
    await channel.start()
    receiver = ZmqReceiver(config, where=where)

    async def take_weights() -> None:
        while True:
            message = await channel.receive()
            if not isinstance(message, WeightsReady):
                continue
            manifest = message.manifest
            try:
                await asyncio.to_thread(receiver.read, manifest)
            except Exception as error:
                log("refused", version=manifest.version, reason=str(error))
                channel.send(WeightsRejected(manifest.version, channel.serving, str(error)))
                continue
            receiver.serves(manifest)
            channel.send(WeightsApplied(manifest.version, 0.0, 0.0, 0.0, 0))
            log("serves", version=manifest.version)

    taking = asyncio.create_task(take_weights())
    number = 0
    while not (run_dir / "enough").exists():
        while number in channel.tasks:  # of a process before this one
            number += 1
        await channel.acquire()
        channel.send(TrajectoryMessage(_trajectory(f"{name}-{number}"), (number,)))
        log("sent", id=f"{name}-{number}")
        number += 1
        await asyncio.sleep(0.05)
        if taking.done():
            taking.result()
    left = await channel.drain(60)
    log("drained", left=left)
    channel.send(Bye("enough"))
    await asyncio.sleep(1.0)
    taking.cancel()
    await channel.close()
    outbox.close()


def _trajectory(name: str) -> Trajectory:
    return Trajectory(
        trajectory_id=name,
        pieces=(np.arange(64, dtype=np.int32),),
        response=np.arange(256, dtype=np.int32),
        logprobs=np.zeros(256, np.float32),
        passes=(
            Pass(layout=(0, RESPONSE), states={"a": "b"}, start=0, stop=256, num_cached_tokens=0),
        ),
    )


def main() -> None:
    """See above."""
    what, folder, endpoint, keys, last = sys.argv[1:]
    run_dir = Path(folder)
    if what == "learner":
        learner(run_dir, ProtocolConfig(endpoint=endpoint, keys=keys, interface=last))
    else:
        asyncio.run(actor(run_dir, ProtocolConfig(endpoint=endpoint, keys=keys), last))


if __name__ == "__main__":
    main()
