"""The shared-memory ring: whole sets by value, nothing torn, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from protocol.weights.base import NoFreeSlot, Tensor, WeightsError
from protocol.weights.memory import remove_leftovers
from protocol.weights.payload import as_tensor, payload_bytes
from protocol.weights.shm import ShmReceiver, ShmSender, segment_path
from protocol.wire.messages import Canary, WeightsComing

CANARY = Canary((), (), 0.0)
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "embed": ("F32", (5, 7)),
    "norm": ("BF16", (3,)),
    "empty": ("F32", (0,)),
}


def tensors(fill: int) -> dict[str, Tensor]:
    return {
        "embed": as_tensor("F32", (5, 7), np.full((5, 7), fill, np.float32)),
        "norm": as_tensor("BF16", (3,), np.full(6, fill, np.uint8)),
        "empty": as_tensor("F32", (0,), b""),
    }


@pytest.fixture
def run_id() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield name
    segment_path(name).unlink(missing_ok=True)


@pytest.fixture
def sender(run_id: str) -> Iterator[ShmSender]:
    one = ShmSender(run_id, payload_bytes(SHAPES))
    yield one
    one.close()


def test_two_versions_live_side_by_side(run_id: str, sender: ShmSender) -> None:
    receiver = ShmReceiver(run_id)
    first = sender.publish(0, tensors(1).items(), CANARY, ["a"])
    second = sender.publish(1, tensors(2).items(), CANARY, ["a"])
    for manifest, value in ((first, 1), (second, 2)):
        got = receiver.read(manifest)
        assert {name: t[:2] for name, t in got.items()} == SHAPES
        assert np.frombuffer(got["embed"].data, np.float32).tolist() == [value] * 35
        assert bytes(got["norm"].data) == bytes([value] * 6)
        assert got["embed"].data.readonly
    path, offset = receiver.locate(second)
    embed = second.tensors[0]
    mapped = np.fromfile(path, np.float32, 35, offset=offset + embed.offset)
    assert mapped.tolist() == [2.0] * 35


def test_a_slot_is_written_again_only_after_it_was_released(run_id: str, sender: ShmSender) -> None:
    receiver = ShmReceiver(run_id)
    first = sender.publish(0, tensors(1).items(), CANARY, ["a"])
    sender.publish(1, tensors(2).items(), CANARY, ["a"])
    with pytest.raises(NoFreeSlot, match="version 0 by a"):
        sender.publish(2, tensors(3).items(), CANARY, ["a"])
    with pytest.raises(NoFreeSlot, match="version 0 by a"):
        sender.wait_free(0.01)
    assert bytes(receiver.read(first)["norm"].data) == b"\1" * 6
    sender.applied("a", 1)
    sender.wait_free(0.01)
    third = sender.publish(2, tensors(3).items(), CANARY, ["a"])
    assert third.slot == first.slot
    with pytest.raises(WeightsError, match="slot 0 has version 2"):
        receiver.read(first)


def test_a_flipped_bit_is_found(run_id: str, sender: ShmSender) -> None:
    manifest = sender.publish(0, tensors(1).items(), CANARY)
    path, offset = ShmReceiver(run_id).locate(manifest)
    with path.open("r+b") as file:
        file.seek(offset + manifest.tensors[1].offset)
        file.write(b"\x03")
    with pytest.raises(WeightsError, match="'norm': its bytes do not match"):
        ShmReceiver(run_id).read(manifest)
    assert ShmReceiver(run_id).read(manifest, verify=False)


def test_two_tensors_of_one_shape_cannot_change_places(run_id: str, sender: ShmSender) -> None:
    one = as_tensor("F32", (4,), np.full(4, 1, np.float32))
    two = as_tensor("F32", (4,), np.full(4, 2, np.float32))
    manifest = sender.publish(0, {"k": one, "v": two}.items(), CANARY)
    k, v = manifest.tensors
    swapped = msgspec.structs.replace(
        manifest,
        tensors=(
            msgspec.structs.replace(k, name="v", xxh3=v.xxh3),
            msgspec.structs.replace(v, name="k", xxh3=k.xxh3),
        ),
    )
    with pytest.raises(WeightsError, match="do not match"):
        ShmReceiver(run_id).read(swapped)


def test_manifests_that_point_elsewhere_are_refused(run_id: str, sender: ShmSender) -> None:
    good = sender.publish(0, tensors(1).items(), CANARY)
    receiver = ShmReceiver(run_id)
    for change, says in (
        ({"slot": 2}, "slot 2 of 2"),
        ({"slot": -1}, "slot -1 of 2"),
        ({"slot": 1}, "being written"),
        ({"transport": "folder"}, "not shm"),
        ({"nbytes": 2**40}, "there is room for"),
        ({"version": 7}, "has version 0"),
    ):
        with pytest.raises(WeightsError, match=says):
            receiver.read(msgspec.structs.replace(good, **change))


def test_a_failed_write_leaves_the_last_version_alone(run_id: str, sender: ShmSender) -> None:
    manifest = sender.publish(0, tensors(1).items(), CANARY, ["a"])
    big = as_tensor("U8", (8192,), bytes(8192))
    with pytest.raises(WeightsError, match="size the buffers with"):
        sender.publish(1, {"big": big}.items(), CANARY, ["a"])
    assert bytes(ShmReceiver(run_id).read(manifest)["norm"].data) == b"\1" * 6
    sender.publish(1, tensors(2).items(), CANARY, ["a"])


def test_no_ring_no_weights(run_id: str) -> None:
    sender = ShmSender(run_id, 4096)
    manifest = sender.publish(0, tensors(1).items(), CANARY)
    path = segment_path(run_id)
    assert path.stat().st_mode & 0o077 == 0, "nobody else may read weights"
    sender.close()
    sender.close()
    assert not path.exists()
    with pytest.raises(WeightsError, match="no weight ring"):
        ShmReceiver(run_id).read(manifest)


def test_two_writers_of_one_run_are_refused(run_id: str, sender: ShmSender) -> None:
    with pytest.raises(ValueError, match="another process publishes weights for this run"):
        ShmSender(run_id, 4096)
    assert segment_path(run_id).exists()


def test_more_than_the_machine_has_is_one_clear_line(run_id: str) -> None:
    with pytest.raises(ValueError, match=r"needs \d+ MiB in .* are free"):
        ShmSender(run_id, 2**50)
    assert not segment_path(run_id).exists()


def test_a_reader_follows_a_restarted_writer(run_id: str) -> None:
    receiver = ShmReceiver(run_id)
    first = ShmSender(run_id, 4096)
    kept = receiver.read(first.publish(0, tensors(1).items(), CANARY))
    first.close()
    second = ShmSender(run_id, 8192)
    got = receiver.read(second.publish(0, tensors(2).items(), CANARY))
    assert bytes(got["norm"].data) == b"\2" * 6
    assert bytes(kept["norm"].data) == b"\1" * 6, "views of the old ring stay valid"
    second.close()


def test_the_hashing_of_a_dead_writers_weights_is_not_waited_for(run_id: str) -> None:
    """It dies in the middle of a version, and writes that version again when it is back."""
    receiver = ShmReceiver(run_id)
    first = ShmSender(run_id, payload_bytes(SHAPES))
    receiver.read(first.publish(0, tensors(1).items(), CANARY))

    def dies() -> Iterator[tuple[str, Tensor]]:
        yield "embed", tensors(2)["embed"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.publish(1, dies(), CANARY, coming=receiver.expect)
    ahead = receiver._ahead
    assert ahead is not None
    assert ahead._thread.is_alive()
    first.close()
    second = ShmSender(run_id, payload_bytes(SHAPES))
    began = time.monotonic()
    got = receiver.read(second.publish(1, tensors(3).items(), CANARY))
    assert time.monotonic() - began < 5
    assert bytes(got["norm"].data) == b"\3" * 6
    ahead._thread.join(5)
    assert not ahead._thread.is_alive(), "it ends although nothing was written"
    receiver.close()
    second.close()


def test_a_version_that_never_came_makes_room_for_the_next(run_id: str, sender: ShmSender) -> None:
    receiver = ShmReceiver(run_id)
    receiver.read(sender.publish(0, tensors(1).items(), CANARY))
    receiver.expect(WeightsComing(1, "shm", 1))
    first = receiver._ahead
    assert first is not None
    manifest = sender.publish(2, tensors(2).items(), CANARY, coming=receiver.expect)
    assert receiver._ahead is not first
    assert bytes(receiver.read(manifest)["norm"].data) == b"\2" * 6
    first._thread.join(5)
    assert not first._thread.is_alive()


WRITER = """
import sys, time
from protocol.weights.shm import ShmSender
ShmSender(sys.argv[1], 4096)
print("up", flush=True)
time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_and_a_live_one_is_not(run_id: str) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, run_id], cwd=root, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        path = segment_path(run_id)
        assert path not in remove_leftovers()
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert path.exists()
        assert path in remove_leftovers()
        assert not path.exists()


READER = """
import sys
from protocol.weights.shm import ShmReceiver, segment_path
receiver = ShmReceiver(sys.argv[1])
receiver._newest()
"""


def test_a_reader_that_exits_leaves_the_ring_alone(run_id: str, sender: ShmSender) -> None:
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", READER, run_id], cwd=root, check=True, timeout=30)
    assert segment_path(run_id).exists()
