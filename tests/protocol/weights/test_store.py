"""An object store as a transport, on fsspec's own file systems: whole versions, or clear words."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import msgspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from safetensors.numpy import load

from protocol.weights.base import NoFreeSlot, Progress, Tensor, WeightsError
from protocol.weights.payload import as_tensor
from protocol.weights.store import StoreReceiver, StoreSender, check_store
from protocol.wire.messages import Canary

SIZE = 20 * 2**20 + 5
EXPECTED: dict[str, tuple[str, tuple[int, ...]]] = {"w": ("U8", (SIZE,)), "b": ("F32", (3,))}
CANARY = Canary((), (), 0.0)


class Slow(LocalFileSystem):
    """A store that can be counted, slowed down and broken."""

    protocol = "slowtest"
    reads: ClassVar[list[tuple[str, int]]] = []
    seconds = 0.0
    error: Exception | None = None

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        self.reads.append((path, start or 0))
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return super().cat_file(path, start=start, end=end, **more)

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if self.error is not None and "w" in mode:
            raise self.error
        return super().open(path, mode, **more)


@pytest.fixture(autouse=True)
def slow() -> Iterator[type[Slow]]:
    fsspec.register_implementation("slowtest", Slow, clobber=True)
    Slow.reads, Slow.seconds, Slow.error = [], 0.0, None
    yield Slow
    Slow.reads, Slow.seconds, Slow.error = [], 0.0, None


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"slowtest://{tmp_path}"


@pytest.fixture
def run_id() -> str:
    return f"test-{uuid.uuid4().hex}"


def tensors(fill: int) -> Iterator[tuple[str, Tensor]]:
    yield "b", as_tensor("F32", (3,), np.full(3, fill, np.float32))
    yield "w", as_tensor("U8", (SIZE,), np.full(SIZE, fill, np.uint8))


def objects(tmp_path: Path, run_id: str) -> list[str]:
    return sorted(one.name for one in (tmp_path / run_id).glob("*"))


def test_an_object_is_read_once_by_a_host_and_goes_when_nobody_needs_it(
    tmp_path: Path, url: str, run_id: str
) -> None:
    sender = StoreSender(url, run_id, EXPECTED)
    one, two = StoreReceiver(url, run_id), StoreReceiver(url, run_id)
    for version in range(3):
        manifest = sender.publish(version, tensors(version), CANARY, ["one", "two"])
        Slow.reads.clear()
        for receiver in (one, two):
            got = receiver.read(manifest)
            assert got["w"].data[0] == got["w"].data[-1] == version
        assert [start for _, start in Slow.reads].count(0) == 1
        newest = sender.newest("w")
        assert newest is not None
        assert newest[0] == version
        sender.applied("one", version)
        if version != 1:
            sender.applied("two", version)
        there = objects(tmp_path, run_id)
        assert there[-1] == f"weights-{version:010d}.safetensors"
        assert len(there) == 1, "who serves a version has it; whoever comes reads the newest"
    data = (tmp_path / run_id / "weights-0000000002.safetensors").read_bytes()
    assert load(data)["b"].tolist() == [2.0] * 3, "any tool reads it"
    one.close()
    two.close()
    sender.close()
    assert not (tmp_path / run_id).exists()


def test_what_is_still_fetched_stays(tmp_path: Path, url: str, run_id: str) -> None:
    sender = StoreSender(url, run_id, EXPECTED)
    first = sender.publish(0, tensors(0), CANARY, ["quick", "slow"])
    sender.applied("quick", 0)
    sender.publish(1, tensors(1), CANARY, ["quick", "slow"])
    sender.publish(2, tensors(2), CANARY, ["quick"])
    receiver = StoreReceiver(url, run_id)
    assert receiver.read(first)["w"].data[0] == 0
    sender.left("slow")
    sender.left("quick")
    assert len(objects(tmp_path, run_id)) == 1
    receiver.close()
    sender.close()


def test_a_learner_that_is_back_deletes_what_the_killed_one_left(
    tmp_path: Path, url: str, run_id: str
) -> None:
    StoreSender(url, run_id, EXPECTED).publish(4, tensors(4), CANARY, ["a"])
    other = StoreSender(url, run_id + "x", EXPECTED)
    other.publish(1, tensors(1), CANARY)
    second = StoreSender(url, run_id, EXPECTED)
    assert objects(tmp_path, run_id) == []
    assert len(objects(tmp_path, run_id + "x")) == 1, "of another run"
    second.publish(4, tensors(5), CANARY)
    second.close()
    other.close()


READ = """
import sys, msgspec
from protocol.weights.store import StoreReceiver
from protocol.wire.messages import WeightManifest
url, run_id, manifest = sys.argv[1:]
manifest = msgspec.msgpack.decode(bytes.fromhex(manifest), type=WeightManifest)
got = StoreReceiver(url, run_id).read(manifest)
print(got["w"].data[0], got["w"].data[-1])
"""


def test_processes_meet_in_the_store(tmp_path: Path, run_id: str) -> None:
    url = f"file://{tmp_path}"
    sender = StoreSender(url, run_id, EXPECTED)
    manifest = sender.publish(0, tensors(9), CANARY, ["a", "b"])
    command = [sys.executable, "-c", READ, url, run_id, msgspec.msgpack.encode(manifest).hex()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    assert [one.communicate(timeout=60)[0].split() for one in both] == [["9", "9"]] * 2
    sender.close()


def test_damaged_and_short_objects_are_refused(tmp_path: Path, url: str, run_id: str) -> None:
    sender = StoreSender(url, run_id, EXPECTED)
    receiver = StoreReceiver(url, run_id)
    manifest = sender.publish(0, tensors(1), CANARY)
    path = tmp_path / run_id / "weights-0000000000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"\xff" + data[-8:])
    with pytest.raises(WeightsError, match="'w': its bytes do not match its hash"):
        receiver.read(manifest)
    path.write_bytes(data[:-9])
    with pytest.raises(WeightsError, match="is too short"):
        receiver.read(manifest)
    path.write_bytes(b"\xff" * 8 + data[8:])
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        receiver.read(manifest)
    path.unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*FileNotFoundError"):
        receiver.read(manifest)
    path.write_bytes(data)
    assert receiver.read(manifest)["w"].data[0] == 1
    receiver.close()
    sender.close()


def test_a_store_that_does_not_answer_is_given_up(url: str, run_id: str) -> None:
    sender = StoreSender(url, run_id, EXPECTED)
    manifest = sender.publish(0, tensors(1), CANARY)
    Slow.seconds = 1.0
    receiver = StoreReceiver(url, run_id, deadline_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(WeightsError, match="nothing came for 0 s"):
        receiver.read(manifest)
    assert time.monotonic() - began < 0.9
    progress = Progress()
    progress.cancel("given up")
    with pytest.raises(WeightsError, match="given up"):
        receiver.read(manifest, progress=progress)
    receiver.close()
    sender.close()


@pytest.mark.parametrize("error", [TimeoutError("read timed out"), PermissionError("denied")])
def test_errors_of_a_store_are_typed(url: str, run_id: str, error: Exception) -> None:
    sender = StoreSender(url, run_id, EXPECTED)
    receiver = StoreReceiver(url, run_id)
    manifest = sender.publish(0, tensors(1), CANARY)
    Slow.error = error
    with pytest.raises(WeightsError, match=f"cannot read .*{error}"):
        receiver.read(manifest)
    with pytest.raises(NoFreeSlot, match=f"cannot write weights 1 to .*{error}"):
        sender.publish(1, tensors(1), CANARY)
    with pytest.raises(ValueError, match=f"cannot write to {url}: .*{error}"):
        StoreSender(url, run_id, EXPECTED)
    Slow.error = None
    assert sender.publish(1, tensors(1), CANARY).version == 1, "the next try succeeds"
    receiver.close()
    sender.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "write an address such as s3://"),
        ("/shared/folder", "write an address such as s3://"),
        ("s3://", "write an address such as s3://"),
        ("memory://x", "is of one process"),
        ("carrier-pigeon://x/y", "not known"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_store(address)


def test_a_run_id_never_leaves_its_place(url: str) -> None:
    with pytest.raises(ValueError, match="run id"):
        StoreSender(url, "../elsewhere", EXPECTED)
    with pytest.raises(ValueError, match="run id"):
        StoreReceiver(url, "../elsewhere")
