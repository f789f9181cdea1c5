"""Processes killed at random moments: nothing lost, nothing trained twice.

A fake actor works through numbered tasks, journals and sends; a fake learner trains and
checkpoints. What the actor wrote down must be in the last checkpoint, each task once, and its
parameters must be those of a run that nobody disturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynatok_online.trajectory import Trajectory
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.delivery.delivery import Consumed
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.delivery.learner_channel import LearnerChannel
from protocol.delivery.received import Received
from protocol.wire.messages import Hello, TrajectoryMessage

ROOT = Path(__file__).parents[3]


def config(port: int) -> ProtocolConfig:
    return ProtocolConfig(
        endpoint=f"tcp://127.0.0.1:{port}",
        credits=16,
        heartbeat_seconds=0.05,
        dead_after_seconds=2.0,
        connect_seconds=60.0,
        resend_seconds=0.3,
        linger_seconds=0.0,
    )


def empty(name: str, *tasks: int) -> TrajectoryMessage:
    return TrajectoryMessage(
        Trajectory(
            trajectory_id=name,
            pieces=(),
            response=np.zeros(0, np.int32),
            logprobs=np.zeros(0, np.float32),
            passes=(),
        ),
        tasks,
    )


async def act(folder: Path, port: int, tasks: int) -> None:
    """Works through its tasks, all or until `stop` appears, then drains.

    Notes each task once its trajectory is in the journal.
    """
    outbox = JournaledOutbox(folder / "outbox", "run", "a", segment_bytes=20_000)
    channel = ActorChannel(config(port), "run", "a", Hello("fake", 1, 0), outbox=outbox)
    await channel.start()
    notes = os.open(folder / "produced", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for task in range(tasks):
        if (folder / "stop").exists():
            break
        if task in channel.tasks:
            continue
        await channel.acquire()
        channel.send(empty(str(task), task))
        os.write(notes, f"{task}\n".encode())
        await asyncio.sleep(0.002)
    assert await channel.drain(30) == 0
    (folder / "drained").touch()
    await channel.close()


def learn(folder: Path, port: int) -> None:
    """Trains on batches of 5, with a checkpoint after each, until all is drained and trained.

    A step depends on the parameters and on its whole batch, as an optimizer's does.
    """
    saved = {"low": 0, "beyond": [], "trained": [], "parameters": 1}
    with contextlib.suppress(FileNotFoundError):
        saved = json.loads((folder / "checkpoint").read_text())
    trained: list[str] = saved["trained"]  # type: ignore[assignment]
    parameters: int = saved["parameters"]  # type: ignore[assignment]
    consumed = Consumed(saved["low"], saved["beyond"])  # type: ignore[arg-type]
    store = JournaledStore(folder / "inbox", "run", segment_bytes=20_000)
    replay = list(store.replay(consumed))
    assert store.missing == 0
    channel = LearnerChannel(
        config(port), "run", store=store, receipts=store.receipts, replay=replay
    )
    channel.start()
    buffer: list[Received] = []
    while True:
        event = channel.receive(0.3)
        if event is not None and isinstance(event.message, TrajectoryMessage):
            buffer.append(event)
        last = event is None and (folder / "drained").exists()
        if len(buffer) < 5 and not last:
            continue
        for one in reversed(buffer):  # not in the order of the journal
            assert isinstance(one.message, TrajectoryMessage)
            assert one.record is not None
            consumed.add(one.record)
            channel.accept(one)
        batch = [one.message.trajectory.trajectory_id for one in buffer]  # type: ignore[union-attr]
        parameters = (parameters * 31 + sum(hash(int(task) + 7) ** 3 for task in batch)) % 2**61
        trained += batch
        buffer = []
        state = consumed.state()
        saved = {
            "low": state.low,
            "beyond": state.beyond,
            "trained": trained,
            "parameters": parameters,
        }
        (folder / "new").write_text(json.dumps(saved))
        time.sleep(0.003)  # a checkpoint takes its time
        (folder / "new").rename(folder / "checkpoint")
        channel.checkpointed(state)
        if last:
            break
    channel.close()


def start(role: str, folder: Path, port: int, tasks: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    log = (folder / f"{role}.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, __file__, role, str(folder), str(port), str(tasks)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
        )


def progress(folder: Path) -> None:
    """Wait until both have done something since now."""

    def sizes() -> list[int]:
        there = (folder / "produced", folder / "checkpoint")
        return [path.stat().st_size if path.exists() else 0 for path in there]

    before = sizes()
    deadline = time.monotonic() + 60
    while any(now <= then for now, then in zip(sizes(), before, strict=True)):
        assert time.monotonic() < deadline, [p.read_text() for p in folder.glob("*.log")]
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def undisturbed(folder: Path, tasks: int) -> dict[str, Any]:
    """The last checkpoint of a run of so many tasks that nobody killed."""
    port = free_port()
    for process in [start(role, folder, port, tasks) for role in ("act", "learn")]:
        assert process.wait(120) == 0, [p.read_text() for p in folder.glob("*.log")]
    found: dict[str, Any] = json.loads((folder / "checkpoint").read_text())
    return found


def chaos(folder: Path, kills: int, seed: int) -> None:
    port = free_port()
    draw = random.Random(seed)
    here = folder / "disturbed"
    many = 10**6
    running = {role: start(role, here, port, many) for role in ("act", "learn")}
    try:
        for _ in range(kills):
            progress(here)
            time.sleep(draw.uniform(0.0, 0.3))
            for role in draw.choice([["act"], ["learn"], ["act", "learn"]]):
                assert running[role].poll() is None, (here / f"{role}.log").read_text()
                running[role].kill()
                running[role].wait()
                running[role] = start(role, here, port, many)
        progress(here)
        (here / "stop").touch()
        for role, process in running.items():
            assert process.wait(60) == 0, (here / f"{role}.log").read_text()
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    produced = (here / "produced").read_text().split()
    last = json.loads((here / "checkpoint").read_text())
    trained = last["trained"]
    print(f"{kills} kills: {len(produced)} noted, {len(trained)} trained on")
    assert len(trained) == len(set(trained)), "trained twice"
    assert not set(produced) - set(trained), "lost"
    assert len(trained) > 5 * kills
    # Killed between the journal and the note: sent all the same, and at most one each time.
    assert len(set(trained) - set(produced)) <= kills
    expected = undisturbed(folder / "undisturbed", len(trained))
    assert trained == expected["trained"]
    assert last["parameters"] == expected["parameters"]


def test_a_few_kills(tmp_path: Path) -> None:
    chaos(tmp_path, 2, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_200_kills(tmp_path: Path) -> None:
    chaos(tmp_path, 200, 2)


def test_an_actor_pauses_while_its_disk_is_full(tmp_path: Path) -> None:
    async def run() -> None:
        learner = LearnerChannel(config(0), "run")
        learner.start()
        port = int(learner.endpoint.rpartition(":")[2])
        outbox = JournaledOutbox(tmp_path, "run", "a", max_bytes=2000, segment_bytes=700)
        channel = ActorChannel(config(port), "run", "a", Hello("fake", 1, 0), outbox=outbox)
        await channel.start()
        channel.connected = False  # nothing is acknowledged, so nothing is deleted
        for i in range(16):
            await channel.acquire()
            channel.send(empty(f"t{i}"))
        assert channel.paused is not None
        assert "its limit is 2000" in channel.paused
        assert 0 < len(outbox) < 16
        assert channel.free_credits == 0, "what waits for room keeps its credit"
        channel.connected = True
        channel._resend()
        assert await channel.drain(10) == 0
        assert not channel._parked
        names = []
        while (event := learner.receive(0.2)) is not None:
            if isinstance(event.message, TrajectoryMessage):
                names.append(event.message.trajectory.trajectory_id)
        assert names == [f"t{i}" for i in range(16)]
        await channel.close()
        outbox.close()
        learner.close()

    asyncio.run(run())


if __name__ == "__main__":
    role, where, at, count = sys.argv[1:]
    if role == "act":
        asyncio.run(act(Path(where), int(at), int(count)))
    else:
        learn(Path(where), int(at))
