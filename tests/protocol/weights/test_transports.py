"""What every weight transport must do: whole sets by value, or a clear refusal."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import zmq
from safetensors.numpy import load_file

from protocol.config import ProtocolConfig
from protocol.weights.base import (
    NoFreeSlot,
    Progress,
    Tensor,
    WeightReceiver,
    WeightSender,
    WeightsError,
)
from protocol.weights.folder import FolderReceiver, FolderSender, versions_in, weights_path
from protocol.weights.payload import as_tensor, payload_bytes
from protocol.weights.shm import ShmReceiver, ShmSender
from protocol.weights.store import StoreReceiver, StoreSender
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.messages import Canary

CANARY = Canary(((1, 2),), ((-0.5,),), 0.1)
EXPECTED: dict[str, tuple[str, tuple[int, ...]]] = {
    "norm": ("BF16", (3,)),
    "embed": ("F32", (5, 7)),
    "empty": ("F32", (0,)),
    "wide": ("U8", (4 * 2**20 + 3,)),
}
CONFIG = ProtocolConfig(
    endpoint="tcp://127.0.0.1:0", heartbeat_seconds=0.1, dead_after_seconds=1.0, linger_seconds=0.0
)


def tensors(fill: int) -> Iterator[tuple[str, Tensor]]:
    for name, (dtype, shape) in EXPECTED.items():
        count = payload_bytes({name: (dtype, shape)})
        width = as_tensor(dtype, shape, np.full(count, fill, np.uint8)[: _size(dtype, shape)])
        yield name, width


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return {"BF16": 2, "F32": 4, "U8": 1}[dtype] * int(np.prod(shape))


class Pair(NamedTuple):
    sender: WeightSender
    receiver: WeightReceiver


def _ipc(size: int, folder: Path) -> Pair:
    config = msgspec.structs.replace(CONFIG, endpoint="ipc://*")
    where = f"ipc://{folder}/learner"
    return Pair(ZmqSender(config, size, beside=where), ZmqReceiver(config, 2.0, lambda: where))


def _store(folder: Path) -> Pair:
    url, name = f"file://{folder}", f"test-{uuid.uuid4().hex}"
    return Pair(StoreSender(url, name, EXPECTED), StoreReceiver(url, name))


@pytest.fixture(params=["shm", "folder", "zmq", "zmq over ipc", "store"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    size = payload_bytes(EXPECTED)
    both: dict[str, Callable[[], Pair]] = {
        "shm": lambda: _shm(size),
        "folder": lambda: Pair(
            FolderSender(tmp_path, EXPECTED), FolderReceiver(tmp_path, appear_seconds=0.2)
        ),
        "zmq": lambda: Pair(ZmqSender(CONFIG, size), ZmqReceiver(CONFIG, 2.0)),
        "store": lambda: _store(tmp_path),
        "zmq over ipc": lambda: _ipc(size, tmp_path),
    }
    one = both[request.param]()
    yield one
    one.receiver.close()
    one.sender.close()


def _shm(size: int) -> Pair:
    name = f"test-{uuid.uuid4().hex}"
    return Pair(ShmSender(name, size), ShmReceiver(name))


def test_versions_arrive_by_value(pair: Pair) -> None:
    first = pair.sender.publish(0, tensors(1), CANARY, ["a"])
    second = pair.sender.publish(1, tensors(2), CANARY, ["a"])
    for manifest, value in ((first, 1), (second, 2), (first, 1)):
        got = pair.receiver.read(manifest)
        assert {name: t[:2] for name, t in got.items()} == EXPECTED
        assert all(set(bytes(t.data)) <= {value} for t in got.values())
        assert all(t.data.nbytes == _size(t.dtype, t.shape) for t in got.values())
        path, start = pair.receiver.locate(manifest)
        for spec in manifest.tensors:
            mapped = np.fromfile(path, np.uint8, spec.nbytes, offset=start + spec.offset)
            assert bytes(mapped) == bytes(got[spec.name].data)


def test_many_versions_in_turn(pair: Pair) -> None:
    for version in range(6):
        manifest = pair.sender.publish(version, tensors(version), CANARY, ["a"])
        got = pair.receiver.read(manifest)
        assert got["norm"].data[0] == version
        pair.sender.applied("a", version)


def test_the_newest_version_can_be_compared_with_and_no_other(pair: Pair) -> None:
    def newest(name: str) -> bytes | None:
        found = pair.sender.newest(name)
        return None if found is None else bytes(found)

    assert newest("norm") is None
    seen: list[bytes | None] = []

    def written(version: int) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors(version):
            seen.append(newest(name))
            yield name, tensor

    for version in range(4):
        seen.clear()
        pair.sender.publish(version, written(version), CANARY, ["a"])
        pair.sender.applied("a", version)
        for (name, tensor), before in zip(
            tensors(version - 1 if version else 0), seen, strict=True
        ):
            assert before == (bytes(tensor.data) if version else None), name
            assert newest(name) == bytes(dict(tensors(version))[name].data)
    assert newest("other") is None


def test_a_newest_version_that_is_written_over_is_not_compared_with() -> None:
    sender = ShmSender(f"test-{uuid.uuid4().hex}", payload_bytes(EXPECTED))
    sender.publish(0, tensors(0), CANARY, ["slow"])
    sender.publish(1, tensors(1), CANARY)
    seen = []

    def written() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors(2):
            seen.append(sender.newest(name))
            yield name, tensor

    sender.publish(2, written(), CANARY)
    assert seen == [None] * len(EXPECTED)
    sender.close()


def test_a_late_joiner_reads_the_latest(pair: Pair) -> None:
    pair.sender.publish(0, tensors(0), CANARY)
    latest = pair.sender.publish(1, tensors(1), CANARY)
    pair.sender.joined("late")
    assert pair.receiver.read(latest)["norm"].data[0] == 1


def test_a_wrong_hash_is_refused_and_the_right_one_still_read(pair: Pair) -> None:
    manifest = pair.sender.publish(0, tensors(1), CANARY)
    spec = manifest.tensors[0]
    wrong = msgspec.structs.replace(
        manifest, tensors=(msgspec.structs.replace(spec, xxh3=1), *manifest.tensors[1:])
    )
    with pytest.raises(WeightsError, match=f"'{spec.name}': its bytes do not match"):
        pair.receiver.read(wrong)
    assert pair.receiver.read(manifest)


def test_what_the_manifest_cannot_mean_is_refused(pair: Pair) -> None:
    manifest = pair.sender.publish(0, tensors(1), CANARY)
    for change in ({"transport": "magic"}, {"version": 5}, {"nbytes": 2**60}):
        with pytest.raises(WeightsError):
            pair.receiver.read(msgspec.structs.replace(manifest, **change))


@pytest.fixture
def folder(tmp_path: Path) -> tuple[FolderSender, FolderReceiver, Path]:
    return FolderSender(tmp_path, EXPECTED), FolderReceiver(tmp_path, 0.2), tmp_path


def test_any_tool_reads_the_folder(tmp_path: Path) -> None:
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "b": ("U8", (3,)),
        "a": ("F32", (2, 2)),
        "none": ("F32", (0, 4)),
    }
    sender = FolderSender(tmp_path, expected)
    a = np.arange(4, dtype=np.float32).reshape(2, 2)
    b = np.array([7, 8, 9], np.uint8)
    sender.publish(
        3,
        {
            "a": as_tensor("F32", (2, 2), a),
            "none": as_tensor("F32", (0, 4), b""),
            "b": as_tensor("U8", (3,), b),
        }.items(),
        CANARY,
    )
    found = load_file(weights_path(tmp_path, 3))
    assert found["a"].tolist() == a.tolist()
    assert found["b"].tolist() == [7, 8, 9]
    assert found["none"].shape == (0, 4)


def test_a_truncated_file_is_refused(folder: tuple[FolderSender, FolderReceiver, Path]) -> None:
    sender, receiver, path = folder
    manifest = sender.publish(0, tensors(1), CANARY)
    file = weights_path(path, 0)
    data = file.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 100, 4, 0):
        file.write_bytes(data[:cut])
        with pytest.raises(WeightsError):
            receiver.read(manifest)
    file.write_bytes(b"\xff" * 8 + data[8:])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        receiver.read(manifest)


def test_a_folder_holds_what_is_needed_and_no_more(
    folder: tuple[FolderSender, FolderReceiver, Path],
) -> None:
    sender, _, path = folder
    for version in range(5):
        sender.publish(version, tensors(version), CANARY, ["a", "b"])
        sender.applied("a", version)
        if version == 1:
            sender.applied("b", 1)
    there = sorted(one.name for one in path.glob("*.safetensors"))
    assert there == [weights_path(path, v).name for v in (1, 2, 3, 4)], "b serves version 1"
    sender.left("b")
    assert len(list(path.glob("*.safetensors"))) == 2


def test_a_learner_that_is_back_keeps_what_actors_may_go_back_to(tmp_path: Path) -> None:
    first = FolderSender(tmp_path, EXPECTED)
    receiver = FolderReceiver(tmp_path, 0.2)
    served = first.publish(4, tensors(4), CANARY, ["a", "b"])
    (tmp_path / "weights-0000000005.writing").write_bytes(b"half")
    second = FolderSender(tmp_path, EXPECTED)
    assert [one.name for one in tmp_path.iterdir()] == [weights_path(tmp_path, 4).name]
    for version in (5, 6, 7):  # nobody is back yet
        second.publish(version, tensors(version), CANARY)
    assert receiver.read(served)["norm"].data[0] == 4
    for actor in "ab":
        second.joined(actor)
        second.applied(actor, 4)
    second.rejected("a", 7)
    second.applied("b", 7)
    assert receiver.read(served)["norm"].data[0] == 4, "a still serves it"
    second.applied("a", 7)
    assert versions_in(tmp_path) == [6, 7]


def test_a_full_disk_leaves_nothing_half_and_the_next_try_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = FolderSender(tmp_path, EXPECTED)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("protocol.weights.folder.os.fsync", full)
        with pytest.raises(NoFreeSlot, match="no room for weights 0"):
            sender.publish(0, tensors(1), CANARY)
    assert not list(tmp_path.iterdir())
    assert FolderReceiver(tmp_path).read(sender.publish(0, tensors(1), CANARY))


def test_a_version_that_was_never_announced_is_written_again(tmp_path: Path) -> None:
    """The learner was killed between writing the file and saying so."""
    FolderSender(tmp_path, EXPECTED).publish(3, tensors(1), CANARY)
    again = FolderSender(tmp_path, EXPECTED).publish(3, tensors(2), CANARY)
    assert FolderReceiver(tmp_path).read(again)["norm"].data[0] == 2


def test_a_file_that_a_network_shows_late_is_waited_for(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    manifest = FolderSender(here, EXPECTED).publish(0, tensors(3), CANARY)
    shown = threading.Timer(0.3, lambda: weights_path(here, 0).rename(weights_path(there, 0)))
    shown.start()
    assert FolderReceiver(there).read(manifest)["norm"].data[0] == 3
    with pytest.raises(WeightsError, match="No such file"):
        FolderReceiver(there, 0.2).read(msgspec.structs.replace(manifest, version=1))


def test_a_file_that_cannot_come_any_more_is_not_waited_for(tmp_path: Path) -> None:
    sender = FolderSender(tmp_path, EXPECTED)
    old = sender.publish(0, tensors(0), CANARY)
    for version in (1, 2):
        sender.publish(version, tensors(version), CANARY)
    began = time.monotonic()
    with pytest.raises(WeightsError, match="No such file"):
        FolderReceiver(tmp_path).read(old)
    assert time.monotonic() - began < 5


def test_a_fetch_says_how_far_it_is_and_ends_when_it_is_cancelled(pair: Pair) -> None:
    manifest = pair.sender.publish(0, tensors(1), CANARY, ["a"])
    progress = Progress()
    pair.receiver.read(manifest, progress=progress)
    assert progress.nbytes >= sum(spec.nbytes for spec in manifest.tensors)
    later = pair.sender.publish(1, tensors(2), CANARY, ["a"])
    progress.cancel("given up")
    with pytest.raises(WeightsError, match="given up"):
        pair.receiver.read(later, progress=progress)
    assert pair.receiver.read(later)["norm"].data[0] == 2


def test_a_set_that_is_not_the_model_is_not_written(
    folder: tuple[FolderSender, FolderReceiver, Path],
) -> None:
    sender, _, path = folder
    with pytest.raises(WeightsError, match="3 of 4 tensors"):
        sender.publish(0, list(tensors(1))[:3], CANARY)
    with pytest.raises(WeightsError, match="is not what this transport was made for"):
        sender.publish(0, [("norm", as_tensor("F32", (1,), b"1234"))], CANARY)
    assert not list(path.glob("*.safetensors"))


def test_a_learner_that_dies_in_the_middle_of_a_stream() -> None:
    sender = ZmqSender(CONFIG, payload_bytes(EXPECTED))
    receiver = ZmqReceiver(CONFIG, deadline_seconds=0.5)
    manifest = sender.publish(0, tensors(1), CANARY)
    sender.close()
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"nothing came for 0 s|nothing came for 1 s"):
        receiver.read(manifest)
    assert time.monotonic() - start < 3
    receiver.close()


def test_what_is_being_overwritten_is_not_served() -> None:
    sender = ZmqSender(CONFIG, payload_bytes(EXPECTED))
    receiver = ZmqReceiver(CONFIG, deadline_seconds=2.0)
    manifests = [sender.publish(v, tensors(v), CANARY, [name]) for v, name in ((0, "a"), (1, "b"))]
    with pytest.raises(NoFreeSlot):
        sender.publish(2, tensors(2), CANARY, ["a"])
    sender.applied("a", 0)
    sender.publish(2, tensors(2), CANARY, ["a"])
    with pytest.raises(WeightsError, match="does not have them any more"):
        receiver.read(manifests[0])
    receiver.close()
    sender.close()


def test_one_slow_actor_keeps_no_version_from_the_others() -> None:
    """It goes on with the version that it has begun, and takes the newest one next."""
    sender = ZmqSender(CONFIG, payload_bytes(EXPECTED))
    slow, fast = (ZmqReceiver(CONFIG, 2.0, run_id=name) for name in ("slow", "fast"))
    first = sender.publish(0, tensors(0), CANARY, ["slow", "fast"])
    for version in range(6):
        if version:
            newest = sender.publish(version, tensors(version), CANARY, ["slow", "fast"])
            assert fast.read(newest)["wide"].data[0] == version
        sender.applied("fast", version)
        sender.wait_free(0.0)
    assert sender.holds(0)
    assert not sender.holds(3)
    assert slow.read(first)["wide"].data[0] == 0
    sender.applied("slow", 0)
    assert slow.read(newest)["wide"].data[0] == 5
    for one in (slow, fast, sender):
        one.close()


def test_a_full_sender_waits_for_readers_that_read() -> None:
    sender = ZmqSender(CONFIG, payload_bytes(EXPECTED))
    receiver = ZmqReceiver(CONFIG, deadline_seconds=2.0)
    manifests = [sender.publish(v, tensors(v), CANARY, [name]) for v, name in ((0, "a"), (1, "b"))]
    with pytest.raises(NoFreeSlot, match="version 0 by a, version 1 by b"):
        sender.wait_free(0.05)
    before = sender._last_read()
    receiver.read(manifests[1])
    assert sender._last_read() > before
    threading.Timer(0.1, lambda: sender.applied("b", 1)).start()
    sender.wait_free(5.0)
    receiver.close()
    sender.close()


def test_a_sending_thread_that_dies_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = ZmqSender(CONFIG, payload_bytes(EXPECTED))
    receiver = ZmqReceiver(CONFIG, deadline_seconds=0.5)
    manifest = sender.publish(0, tensors(1), CANARY)

    def broken(frames: list[bytes]) -> None:
        raise MemoryError("no room for an answer")

    monkeypatch.setattr(sender, "_answer", broken)
    with pytest.raises(WeightsError, match="nothing came"):
        receiver.read(manifest)
    sender._thread.join(5)
    assert isinstance(sender.failure, MemoryError)
    with pytest.raises(RuntimeError, match="thread that sends weights has died"):
        sender.publish(1, tensors(2), CANARY)
    receiver.close()
    sender.close()


def test_strangers_get_nothing_from_a_stream() -> None:
    sender = ZmqSender(CONFIG, 4096)
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(f"tcp://127.0.0.1:{sender.port}")
    stranger.send(b"GET /weights")
    stranger.send(b"DTWX" + bytes(24))
    assert not stranger.poll(300)
    assert sender.refusals.counts == {"request": 2}
    stranger.close(0)
    context.term()
    sender.close()


def near(model: np.ndarray, seed: int, share: float) -> np.ndarray:
    """The weights after a step that changed this share of them by a little."""
    draw = np.random.default_rng(seed)
    out = model.copy()
    chosen = draw.random(len(out)) < share
    out[chosen] ^= draw.integers(0, 4, int(chosen.sum()), dtype=np.uint8)
    return out


def test_a_difference_is_sent_where_it_pays_and_a_full_copy_now_and_then() -> None:
    size = 9 * 2**20
    sender = ZmqSender(CONFIG, size, full_every=4)
    receiver, joining = ZmqReceiver(CONFIG, 2.0), ZmqReceiver(CONFIG, 2.0)
    model = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    bases = []
    try:
        for version in range(6):
            # The third step changes everything: its difference is as large as itself.
            model = near(model, version, share=0.02)
            if version == 2:
                model = np.random.default_rng(9).integers(0, 256, size, dtype=np.uint8)
            tensor = as_tensor("U8", (size,), model)
            manifest = sender.publish(version, [("w", tensor)], CANARY, ["a"])
            bases.append(manifest.base)
            got = receiver.read(manifest)
            assert bytes(got["w"].data) == model.tobytes()
            there = {key[0] for key in receiver._fetched}
            assert there == {version} or version - 1 in there
            receiver.serves(manifest)
            sender.applied("a", version)
            if version == 3:
                assert bytes(joining.read(manifest)["w"].data) == model.tobytes(), "without a base"
    finally:
        receiver.close()
        joining.close()
        sender.close()
    assert bases == [-1, 0, -1, 2, -1, 4]
