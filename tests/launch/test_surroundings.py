"""Homes, folders and clocks as clusters and containers have them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from launch import surroundings


def test_a_home_that_cannot_be_written_says_where_caches_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fine = surroundings.home({"HOME": str(tmp_path)})
    assert fine.ok
    assert fine.what == f"home {tmp_path} can be written"
    found = surroundings.home({"HOME": "/nonexistent"})
    assert found.ok
    assert f"caches go to {tmp_path}/dynatok-home-" in found.what


def test_models_from_the_hub_need_a_cache_that_can_be_written(tmp_path, monkeypatch):
    assert list(surroundings.models("tiny")) == []
    assert list(surroundings.models(str(tmp_path))) == []
    (fine,) = surroundings.models("a/model", {"HF_HOME": str(tmp_path / "new")})
    assert fine.ok
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (found,) = surroundings.models("a/model", {"HOME": str(tmp_path)})
    assert not found.ok
    assert "set HF_HOME" in found.fix
    (offline,) = surroundings.models("a/model", {"HOME": "/x", "HF_HUB_OFFLINE": "1"})
    assert offline.ok


def test_a_small_folder_for_temporary_files(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = surroundings.temporary()
    assert not found.ok
    assert "set TMPDIR" in found.fix


def test_a_clock_that_differs_from_the_file_servers(tmp_path, monkeypatch):
    fine = surroundings.clock(tmp_path / "runs" / "not yet")
    assert fine.ok
    assert fine.what.startswith(f"{tmp_path} can be written, its clock differs by 0.0 s")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 30)
    found = surroundings.clock(tmp_path)
    assert not found.ok
    assert "differs by 30." in found.what or "differs by 29." in found.what


def test_a_folder_that_cannot_be_written(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    found = surroundings.clock(Path("/"))
    assert not found.ok
    assert "nothing can be written (Permission denied)" in found.what


def test_apptainer_without_fuse(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert list(surroundings.fuse()) == []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (found,) = surroundings.fuse(tmp_path / "fuse")
    assert not found.ok
