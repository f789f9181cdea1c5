"""Journals and a checkpoint that version 0.1.0 wrote: whatever comes, they are still read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dynatok_online.trajectory import Trajectory, to_row
from learner.online.checkpoint import latest
from protocol.delivery.delivery import Consumed
from protocol.delivery.durable import JournaledOutbox, JournaledStore
from protocol.wire.codec import decode_actor
from protocol.wire.envelope import unseal
from protocol.wire.messages import Offsets, TrajectoryMessage
from tests.simulate import simulate

GOLDEN = Path(__file__).parent / "golden"
RUN, ACTOR = "run", "a"


def written() -> list[Trajectory]:
    """What the files hold, in order: task i is trajectory i."""
    rng = np.random.default_rng(0)
    return [
        simulate(rng, "sticky" if i % 2 else "exact", block_size=2, name=f"t{i}") for i in range(6)
    ]


def row(message: object) -> dict[str, object]:
    assert isinstance(message, TrajectoryMessage)
    return to_row(message.trajectory)


def test_an_outbox_written_before_is_sent(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "outbox", tmp_path / "outbox")
    outbox = JournaledOutbox(tmp_path / "outbox", RUN, ACTOR)
    frames = [frame for _, _, frame in outbox.frames()]
    outbox.close()
    found = [decode_actor(unseal(frame, RUN, 100_000).payload) for frame in frames]
    assert [row(one) for one in found] == [to_row(one) for one in written()]


def test_a_checkpoint_and_a_store_written_before_are_resumed_from(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    shutil.copytree(GOLDEN / "checkpoint-7", tmp_path / "checkpoint-7")
    found = latest(tmp_path)
    assert found is not None
    state = found.state
    assert (state.step, state.consumed) == (7, Offsets(2, (4,)))
    assert state.tasks == {ACTOR: Offsets(2, (4,))}
    store = JournaledStore(tmp_path / "store", RUN)
    left = list(store.replay(Consumed(state.consumed.low, state.consumed.beyond)))
    store.close()
    assert [one.record for one in left] == [2, 3, 5]
    assert [row(one.message) for one in left] == [to_row(written()[i]) for i in (2, 3, 5)]
