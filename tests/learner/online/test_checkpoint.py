"""Checkpoints: an incomplete one goes, one that cannot be read stays and is said."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from learner.online.checkpoint import (
    FILE,
    StreamState,
    VersionFile,
    complete,
    latest,
)
from protocol.wire.messages import Offsets


def written(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"model")
    complete(path, StreamState(step=step, consumed=Offsets(step), tasks={}))
    return path


def test_the_newest_complete_one_counts_and_incomplete_ones_go(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    written(tmp_path, 9)
    newest = written(tmp_path, 10)
    half = tmp_path / "checkpoint-11"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-12").write_bytes(b"a file of somebody")
    found = latest(tmp_path)
    assert found is not None
    assert (found.path, found.state.step) == (newest, 10)
    assert not half.exists()
    assert (tmp_path / "checkpoint-12").exists()


def test_a_newer_release_may_have_written_more(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    state = msgspec.json.decode((path / FILE).read_bytes())
    (path / FILE).write_bytes(msgspec.json.encode({**state, "something_new": {"a": 1}}))
    found = latest(tmp_path)
    assert found is not None
    assert found.state.step == 3


@pytest.mark.parametrize("fault", ["io", "permission", "schema", "text"])
def test_one_that_cannot_be_read_is_never_removed(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 2)
    path = written(tmp_path, 5)
    read = Path.read_bytes

    def broken(one: Path) -> bytes:
        if one.parent == path:
            code = 5 if fault == "io" else 13
            raise OSError(code, os.strerror(code))
        return read(one)

    if fault in ("io", "permission"):
        monkeypatch.setattr(Path, "read_bytes", broken)
    else:
        (path / FILE).write_bytes(b'{"step": "five"}' if fault == "schema" else b"\xff")
    with pytest.raises(ValueError, match=r"checkpoint of step 5 is complete, .* from step 2"):
        latest(tmp_path)
    assert (path / "model.safetensors").exists()
    written(tmp_path, 7)
    found = latest(tmp_path)
    assert found is not None
    assert found.state.step == 7, "an old one that cannot be read does no harm"


def test_a_version_is_never_used_twice_whatever_the_disk_says(tmp_path: Path) -> None:
    versions = VersionFile(tmp_path)
    assert versions.read() == -1
    versions.write(12)
    assert VersionFile(tmp_path).read() == 12
    (tmp_path / "weights_version").write_text("")
    with pytest.raises(ValueError, match="cannot be read"):
        versions.read()
