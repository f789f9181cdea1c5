"""A journal gives back what was committed, in order, once; whatever happened to its files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.delivery.journal import Journal, JournalFull


def fill(journal: Journal, count: int, size: int = 50) -> list[bytes]:
    payloads = [f"record {i} ".encode() + b"x" * size for i in range(count)]
    for payload in payloads:
        journal.append(payload)
    journal.commit()
    return payloads


def reopened(folder: Path, **options: int) -> Journal:
    return Journal(folder, **options)  # type: ignore[arg-type]


def test_records_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    payloads = fill(journal, 5)
    journal.close()
    again = Journal(tmp_path)
    assert list(again.records()) == list(enumerate(payloads))
    assert list(again.records(3)) == [(3, payloads[3]), (4, payloads[4])]
    assert again.append(b"new") == 5
    again.close()


def test_segments_rotate_and_are_released_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=300)
    payloads = fill(journal, 20)
    assert len(list(tmp_path.glob("*.journal"))) > 4
    assert [payload for _, payload in journal.records()] == payloads
    before = journal.nbytes
    freed = journal.release(10)
    assert 0 < freed == before - journal.nbytes
    assert 0 < journal.first_index <= 10
    assert [i for i, _ in journal.records(10)] == list(range(10, 20))
    journal.release(20)
    assert journal.append(b"x") == 20, "the last segment stays: indices are never used twice"
    journal.close()
    again = Journal(tmp_path)
    assert again.next_index == 21
    again.close()


def test_the_head_tells_what_was_before(tmp_path: Path) -> None:
    seen: list[int] = []

    def head() -> bytes:
        return f"{len(seen)} before".encode()

    journal = Journal(tmp_path, segment_bytes=200, head=head)
    for _ in range(9):
        seen.append(journal.append(b"x" * 50))
    journal.release(8)
    first = journal.first_index
    journal.close()
    again = Journal(tmp_path, head=head)
    assert again.head() == f"{first} before".encode()
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_record_is_cut_off(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    payloads = fill(journal, 3, size=30)
    journal.close()
    path = next(tmp_path.glob("*.journal"))
    os.truncate(path, path.stat().st_size - cut)
    again = Journal(tmp_path)
    assert [p for _, p in again.records()] == payloads[:2]
    assert again.torn_bytes > 0
    assert again.append(b"after") == 2
    again.close()
    third = Journal(tmp_path)
    assert [p for _, p in third.records()] == [*payloads[:2], b"after"]
    assert third.torn_bytes == 0
    third.close()


def test_damage_in_the_middle_costs_the_damaged_record_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    payloads = fill(journal, 5)
    journal.close()
    path = next(tmp_path.glob("*.journal"))
    data = bytearray(path.read_bytes())
    data[data.index(b"record 2")] ^= 1
    path.write_bytes(data)
    again = Journal(tmp_path)
    assert list(again.records()) == [(i, payloads[i]) for i in (0, 1, 3, 4)]
    assert (again.damaged, again.missing) == (1, 1)
    again.close()


def test_a_limit_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=400, segment_bytes=200)
    with pytest.raises(JournalFull, match="its limit is 400"):
        fill(journal, 10)
    kept = [i for i, _ in journal.records()]
    journal.release(journal.next_index)
    assert journal.append(b"x" * 50) == kept[-1] + 1
    journal.close()


def test_a_record_that_is_too_long_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_record_bytes=10)
    with pytest.raises(ValueError, match="longer than the journal's limit of 10"):
        journal.append(b"x" * 11)
    journal.close()


def test_a_disk_that_cannot_be_read_is_an_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    payloads = fill(journal, 3)
    journal.close()

    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", broken)
        with pytest.raises(OSError, match="Input/output error"):
            Journal(tmp_path)
    again = Journal(tmp_path)
    assert [payload for _, payload in again.records()] == payloads
    again.close()


def test_a_small_journal_is_released_in_small_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=8000)
    for _ in range(70):
        journal.append(b"x" * 50)
    assert journal.releasable(0) == 0
    half = journal.releasable(35)
    assert 1500 < half < journal.nbytes
    assert journal.release(35) == half
    assert journal.releasable(35) == 0
    journal.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ValueError, match="in use by another process"):
        Journal(tmp_path)
    journal.close()
    journal.close()
    Journal(tmp_path).close()


FULL = """
import resource, signal, sys
from pathlib import Path
from protocol.delivery.journal import Journal, JournalFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing past the limit is an OSError
journal = Journal(Path(sys.argv[1]), segment_bytes=10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
done = 0
try:
    while True:
        journal.append(b"x" * 90)
        done += 1
except JournalFull as error:
    assert "cannot write" in str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.append(b"room again") == done
print(done)
"""


def test_a_full_disk_keeps_what_was_there_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    out = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    done = int(out.stdout)
    assert 5 < done < 10
    journal = Journal(tmp_path)
    assert [p for _, p in journal.records()] == [b"x" * 90] * done + [b"room again"]
    assert journal.torn_bytes == 0
    assert journal.damaged == 0
    journal.close()


def test_a_full_disk_while_a_segment_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, segment_bytes=100)
    journal.append(b"a" * 60)
    real = os.writev

    def full(fd: int, parts: list[bytes]) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(JournalFull, match="No space left"):
        journal.append(b"b" * 60)
    monkeypatch.setattr(os, "writev", real)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    assert journal.append(b"b" * 60) == 1
    journal.close()
    again = Journal(tmp_path)
    assert [p[:1] for _, p in again.records()] == [b"a", b"b"]
    again.close()


KILLED = """
import sys
from pathlib import Path
from protocol.delivery.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
while True:
    for _ in range(10):
        index = journal.append(str(journal.next_index).encode() * 40)
    journal.commit()
    print(index, flush=True)
"""


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    draw = random.Random(1)
    committed = -1
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            committed = int(child.stdout.readline())
            time.sleep(draw.random() * 0.05)
            os.kill(child.pid, signal.SIGKILL)
            said = [int(line) for line in child.stdout.read().split("\n")[:-1]]
            committed = max([committed, *said])
        journal = Journal(tmp_path)
        indices = []
        for index, payload in journal.records():
            assert payload == str(index).encode() * 40
            indices.append(index)
        assert indices == list(range(len(indices)))
        assert len(indices) > committed
        journal.close()


def mutate(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 4)):
        kind = draw.randrange(5)
        at = draw.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.randint(1, 40))
        elif kind == 3:
            del data[at : at + draw.randint(1, 40)]
        else:
            stop = at + draw.randint(1, 200)
            data[stop:stop] = data[at:stop]


def fuzz(folder: Path, count: int, seed: int) -> None:
    original = folder / "original"
    journal = Journal(original, segment_bytes=600)
    payloads = dict(enumerate(fill(journal, 20)))
    journal.close()
    segments = {path.name: path.read_bytes() for path in original.glob("*.journal")}
    draw = random.Random(seed)
    target = folder / "mutated"
    target.mkdir()
    hurt = 0
    for _ in range(count):
        for name, data in segments.items():
            changed = bytearray(data)
            if draw.random() < 0.5:
                mutate(changed, draw)
            (target / name).write_bytes(changed)
        again = Journal(target, segment_bytes=600)
        got = list(again.records())
        indices = [i for i, _ in got]
        assert indices == sorted(set(indices))
        assert all(payloads[i] == payload for i, payload in got)
        if len(got) < len(payloads):
            hurt += 1
            tail_only = indices == list(range(len(indices)))
            assert again.missing or tail_only, "each loss is counted"
        index = again.append(b"after")
        assert index >= (indices[-1] + 1 if indices else 0)
        assert list(again.records(index)) == [(index, b"after")]
        again.close()
        for path in target.glob("*.journal"):
            path.unlink()
    assert hurt > count // 4


def test_mutated_journals(tmp_path: Path) -> None:
    fuzz(tmp_path, 60, 1)


@pytest.mark.slow
def test_2000_mutated_journals(tmp_path: Path) -> None:
    fuzz(tmp_path, 2000, 2)
