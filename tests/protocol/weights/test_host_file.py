"""One fetch for all actors of a host, whoever dies, lies or gets in the way meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from protocol.config import ProtocolConfig
from protocol.weights import memory
from protocol.weights.base import Progress, WeightsError
from protocol.weights.host_file import HostFile, fetch_once
from protocol.weights.memory import PREFIX, memory_folder, remove_leftovers
from protocol.weights.payload import as_tensor, identify
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.messages import Canary, WeightManifest

CONFIG = ProtocolConfig(endpoint="tcp://127.0.0.1:0", linger_seconds=0.0)
SIZE = 9 * 2**20
CANARY = Canary((), (), 0.0)
MODULE = "protocol.weights.host_file"


class Learner:
    """A sender that counts who asks for the beginning of what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_every: int = 0) -> None:
        self.run_id = f"test-{uuid.uuid4().hex}"
        self.sender = ZmqSender(CONFIG, SIZE + 4096, full_every=full_every)
        self.fetches: list[bytes] = []
        self.slow = 0.0
        answer = self.sender._answer

        def counted(frames: list[bytes]) -> None:
            magic, offset = frames[1][:4], int.from_bytes(frames[1][12:20], "little")
            if offset == 0:
                self.fetches.append(magic)
            time.sleep(self.slow)
            answer(frames)

        monkeypatch.setattr(self.sender, "_answer", counted)

    def publish(self, version: int, changed: int = SIZE) -> WeightManifest:
        """Weights of bytes `version`; but for the first `changed` of them, those before."""
        fill = np.full(SIZE, version, np.uint8)
        fill[changed:] = max(0, version - 1)
        tensors = [("w", as_tensor("U8", (SIZE,), fill))]
        return self.sender.publish(version, tensors, CANARY)

    @property
    def place(self) -> tuple[str, str]:
        """What a reader is started with."""
        return str(self.sender.port), self.run_id

    def receiver(self) -> ZmqReceiver:
        """One in this process."""
        config = msgspec.structs.replace(CONFIG, endpoint=f"tcp://127.0.0.1:{self.sender.port}")
        return ZmqReceiver(config, 5.0, run_id=self.run_id)

    def files(self, manifest: WeightManifest) -> list[Path]:
        """What of a version lies in memory under a name."""
        key = identify(self.run_id, manifest)
        return sorted(memory_folder().glob(f"{PREFIX}.*-{key}"))


class Reader:
    """A process."""

    def __init__(self, learner: Learner) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.protocol.readers", *learner.place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def read(self, manifest: WeightManifest) -> None:
        """Have it read a version; `line` is the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.msgpack.encode(manifest).hex() + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Learner]:
    one = Learner(monkeypatch)
    yield one
    one.sender.close()


@pytest.fixture
def readers() -> Iterator[Callable[[Learner], Reader]]:
    made = []

    def make(learner: Learner) -> Reader:
        made.append(Reader(learner))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait(10)


Make = Callable[[Learner], Reader]


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_actors_of_a_host_fetch_once(learner: Learner, readers: Make) -> None:
    one, two = readers(learner), readers(learner)
    learner.slow = 0.05
    manifest = learner.publish(7)
    one.read(manifest)
    two.read(manifest)
    assert one.line() == two.line() == "[7]"
    later = learner.receiver()
    assert later.read(manifest)["w"].data[0] == 7
    assert learner.fetches == [b"DTW1"]
    (path,) = learner.files(manifest)
    assert path.stat().st_mode & 0o777 == 0o600
    for reader in (one, two):
        reader.end()
        assert path not in remove_leftovers(), "another one still maps it"
    later.close()
    assert not path.exists(), "the last one has removed it"


def test_a_difference_is_fetched_once_too(monkeypatch: pytest.MonkeyPatch, readers: Make) -> None:
    learner = Learner(monkeypatch, full_every=100)
    one, two = readers(learner), readers(learner)
    learner.slow = 0.05
    try:
        for version in (1, 2):
            manifest = learner.publish(version, changed=SIZE if version == 1 else 1000)
            one.read(manifest)
            two.read(manifest)
            assert one.line() == two.line() == ("[1]" if version == 1 else "[1, 2]")
        assert learner.fetches == [b"DTW1", b"DTWD"]
        with contextlib.closing(learner.receiver()) as late:
            assert late.read(manifest)["w"].data[0] == 2
        assert len(learner.fetches) == 2
    finally:
        learner.sender.close()


def test_another_one_takes_over_from_one_that_is_killed(learner: Learner, readers: Make) -> None:
    one, two, three = readers(learner), readers(learner), readers(learner)
    learner.slow = 0.3
    manifest = learner.publish(7)
    one.read(manifest)
    until(lambda: learner.files(manifest) and learner.files(manifest)[0].stat().st_size)
    two.read(manifest)
    three.read(manifest)
    time.sleep(0.2)
    one.process.kill()
    assert two.line() == three.line() == "[7]"
    assert len(learner.fetches) == 2
    assert [".host-" in path.name for path in learner.files(manifest)] == [True]


def test_one_that_is_stopped_holds_up_nobody_for_long(learner: Learner, readers: Make) -> None:
    one, two = readers(learner), readers(learner)
    learner.slow = 0.3
    manifest = learner.publish(7)
    one.read(manifest)
    until(lambda: learner.files(manifest) and learner.files(manifest)[0].stat().st_size)
    one.process.send_signal(signal.SIGSTOP)
    learner.slow = 0.0
    two.read(manifest)
    assert two.line() == "[7]"
    two.end()
    one.process.send_signal(signal.SIGCONT)
    assert one.line() in (
        "[7]",
        f"weights 7: nothing came for 2 s, after {4 * 2**20} of {SIZE} bytes",
    )


def test_damage_is_found_by_whoever_reads_and_shared_no_further(
    learner: Learner, readers: Make
) -> None:
    one, two = readers(learner), readers(learner)
    manifest = learner.publish(7)
    one.read(manifest)
    assert one.line() == "[7]"
    (path,) = learner.files(manifest)
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"\x08")
    two.read(manifest)
    assert two.line() == "[7]"
    with contextlib.closing(learner.receiver()) as receiver:  # what the second one has fetched
        assert receiver.read(manifest)["w"].data[SIZE // 2] == 7
    assert len(learner.fetches) == 2


def test_bytes_that_never_match_are_refused_and_nothing_stays(learner: Learner) -> None:
    manifest = learner.publish(7)
    spec = msgspec.structs.replace(manifest.tensors[0], xxh3=1)
    wrong = msgspec.structs.replace(manifest, tensors=(spec,))
    with contextlib.closing(learner.receiver()) as receiver:
        with pytest.raises(WeightsError, match="do not match its hash"):
            receiver.read(wrong)
        assert not learner.files(wrong)
        assert receiver.read(manifest)["w"].data[0] == 7


def test_what_a_killed_reader_leaves_is_removed(learner: Learner, readers: Make) -> None:
    one = readers(learner)
    manifest = learner.publish(7)
    one.read(manifest)
    assert one.line() == "[7]"
    (path,) = learner.files(manifest)
    assert path not in remove_leftovers()
    one.process.kill()
    one.process.wait(10)
    assert path in remove_leftovers()


# What has the name, in this process.


def put_foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"evil")
    path.chmod(0o600)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(f"{MODULE}.os.geteuid", lambda: mine + 1)


def put_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"evil")
    path.chmod(0o644)


def put_link(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = path.parent / "target"
    target.write_bytes(b"evil")
    target.chmod(0o600)
    path.symlink_to(target)


def put_second_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = path.parent / "target"
    target.write_bytes(b"evil")
    target.chmod(0o600)
    path.hardlink_to(target)


def put_pipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(path, 0o600)


def put_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(0o700)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (memory.__name__, MODULE):
        monkeypatch.setattr(f"{module}.memory_folder", lambda: tmp_path)
    return tmp_path


def fill(fd: int) -> None:
    os.pwrite(fd, b"good", 0)


def contents(file: HostFile) -> bytes:
    return bytes(file.view())


@pytest.mark.parametrize("stage", ["host", "growing"])
@pytest.mark.parametrize(
    "put", [put_foreign, put_open, put_link, put_second_name, put_pipe, put_folder]
)
def test_what_is_not_ours_alone_is_neither_read_nor_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    put: Callable[[Path, pytest.MonkeyPatch], None],
    stage: str,
) -> None:
    path = folder / f"{PREFIX}.{stage}-k"
    put(path, monkeypatch)
    before = path.lstat()
    file = fetch_once("k", 4, fill, Progress(), 5.0)
    assert contents(file) == b"good"
    assert file.path.read_bytes() == b"good"
    file.delete()
    assert path.lstat().st_ino == before.st_ino
    if path.is_file():
        assert path.read_bytes() == b"evil"
    assert {one.name for one in folder.iterdir()} <= {path.name, "target"}


def test_a_file_without_a_name_is_still_read_by_path(folder: Path) -> None:
    file = fetch_once("k", 4, fill, Progress(), 5.0)
    (folder / f"{PREFIX}.host-k").unlink()
    assert file.path.read_bytes() == b"good"
    again = fetch_once("k", 4, fill, Progress(), 5.0)
    assert again.filled
    file.delete()
    assert (folder / f"{PREFIX}.host-k").exists(), "it is not the one that was let go of"
    again.delete()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.ENOSPC, "full"), "no room for"), (WeightsError("cut off"), "cut off")],
)
def test_a_fill_that_fails_leaves_nothing_and_the_next_one_begins_anew(
    folder: Path, error: Exception, words: str
) -> None:
    def fails(fd: int) -> None:
        os.pwrite(fd, b"much more than that", 0)
        raise error

    with pytest.raises(WeightsError, match=words):
        fetch_once("k", 4, fails, Progress(), 5.0)
    assert not list(folder.iterdir())
    assert contents(fetch_once("k", 4, fill, Progress(), 5.0)) == b"good"


def test_too_few_bytes_are_not_shared(folder: Path) -> None:
    with pytest.raises(WeightsError, match="4 bytes of weights came instead of 5"):
        fetch_once("k", 5, fill, Progress(), 5.0)
    assert not list(folder.iterdir())


def test_who_waits_can_be_cancelled_and_sees_progress(learner: Learner, readers: Make) -> None:
    one = readers(learner)
    learner.slow = 0.3
    manifest = learner.publish(7)
    one.read(manifest)
    until(lambda: learner.files(manifest))
    progress = Progress()
    with contextlib.closing(learner.receiver()) as receiver:

        def cancel() -> None:
            until(lambda: progress.nbytes > 0)
            progress.cancel("given up")

        threading.Thread(target=cancel).start()
        with pytest.raises(WeightsError, match="given up"):
            receiver.read(manifest, progress=progress)
        assert one.line() == "[7]"
        assert receiver.read(manifest)["w"].data[0] == 7
    assert len(learner.fetches) == 1
