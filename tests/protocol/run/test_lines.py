"""Lines of several processes, and of times when the disk is full."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from protocol.run.lines import LineFile
from protocol.run.metrics import Metrics
from protocol.run.trace import Traces


class Disk:
    """`os.write` with so many bytes of room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written


def test_lines_wait_for_room_and_come_whole_and_in_order(tmp_path, monkeypatch):
    path = tmp_path / "new" / "lines"
    one, other = LineFile(path), LineFile(path)
    disk = Disk(monkeypatch, 9)
    one.append(b'{"a": 1}')
    disk.room = 3  # the next one is cut off
    one.append(b'{"a": 2}')
    one.append(b'{"a": 3}')
    disk.room = 100
    other.append(b'{"b": 1}')  # after the torn one, which it ends
    other.append(b'{"b": 2}')
    one.append(b'{"a": 4}')
    one.close()
    lines = path.read_bytes().splitlines()
    assert lines == [
        *(b'{"a": 1}', b'{"a', b'{"b": 1}', b'{"b": 2}'),
        *(b'{"a": 2}', b'{"a": 3}', b'{"a": 4}'),
    ]


def test_what_still_waits_at_the_end_is_said(tmp_path, monkeypatch, capsys):
    lines = LineFile(tmp_path / "lines")
    Disk(monkeypatch, 0)
    lines.append(b"1")
    lines.append(b"2")
    lines.close()
    lines.close()
    assert f"2 lines for {tmp_path / 'lines'} are lost: the disk is full" in capsys.readouterr().err
    assert lines.closed
    lines.append(b"3")


def test_another_error_is_raised(tmp_path, monkeypatch):
    lines = LineFile(tmp_path / "lines")

    def broken(fd, data):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="Input/output error"):
        lines.append(b"1")


@pytest.mark.parametrize("kind", [Metrics, Traces])
def test_numbers_and_traces_are_no_reason_to_die(tmp_path, monkeypatch, kind: Any):
    one = kind(tmp_path, "actor")
    with monkeypatch.context() as patched:
        Disk(patched, 0)
        if kind is Traces:
            one.write("sent", trace="a")
        else:
            one._want_tensorboard = False
            one.log(1, loss=1.0)
    one.close()
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().count(b"\n") == 1
