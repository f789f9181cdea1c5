"""JSON files that are read while they are written."""

import errno
import json
from pathlib import Path

import pytest

from protocol.run.json_files import read_json, write_json


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "folder" / "summary.json"
    write_json(path, {"loss": 0.5, "names": ["a"]})
    assert read_json(path) == json.loads(path.read_text()) == {"loss": 0.5, "names": ["a"]}
    write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"loss": None}
    assert [one.name for one in path.parent.iterdir()] == ["summary.json"]


def test_no_object_is_an_empty_one(tmp_path):
    path = tmp_path / "summary.json"
    assert read_json(path) == {}
    for text in ("", '{"loss": 0.', "[1]"):
        path.write_text(text)
        assert read_json(path) == {}


def test_what_cannot_be_read_is_not_taken_for_absent(tmp_path, monkeypatch):
    assert read_json(tmp_path / "file.json" / "below.json") == {}
    write_json(tmp_path / "file.json", {"a": 1})
    assert read_json(tmp_path / "file.json" / "below.json") == {}  # its folder is a file

    def broken(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        read_json(tmp_path / "file.json")


def test_a_full_disk_leaves_the_old_one_where_it_is_optional(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    write_json(path, {"a": 2}, optional=True)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
