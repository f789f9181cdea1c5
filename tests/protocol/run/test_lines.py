"""Lines that many processes append to: whole, or lost and counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from protocol.run.lines import LineFile
from protocol.run.metrics import Metrics
from protocol.run.trace import Traces


def test_a_full_disk_costs_lines_and_never_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "lines"
    file = LineFile(path)
    file.append(b"one")
    real = os.write

    def half(fd: int, data: bytes) -> int:
        return real(fd, data[: len(data) // 2])

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    for write in (half, full):
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write)
            file.append(b"two and more")
    file.append(b"three")
    file.append(b"four")
    assert file.lost == 2
    assert path.read_bytes() == b"one\ntwo an\nthree\nfour\n"
    file.close()
    file.close()
    file.append(b"late")
    assert path.read_bytes().endswith(b"four\n")


@pytest.mark.parametrize("kind", [Metrics, Traces])
def test_numbers_and_traces_are_no_reason_to_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    one = kind(tmp_path, "actor")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    if kind is Traces:
        one.write("sent", trace="a")
    else:
        one._want_tensorboard = False
        one.log(1, loss=1.0)
    assert one._file.lost == 1
    one.close()
