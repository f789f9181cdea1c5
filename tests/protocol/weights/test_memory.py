"""Files in memory: a dead owner's go, a live owner's stay, at every moment."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.weights import memory
from protocol.weights.memory import PREFIX, locked_file, remove_leftovers


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "memory_folder", lambda: tmp_path)
    return tmp_path


def test_a_file_lives_as_long_as_its_lock(folder: Path) -> None:
    fd, path = locked_file("new")
    assert list(folder.iterdir()) == [path]
    assert remove_leftovers() == []
    os.close(fd)
    assert remove_leftovers() == [path]
    assert not list(folder.iterdir())


def test_another_process_that_cleans_up_never_sees_it_unlocked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks before and after each step of making the file."""
    flock, rename = fcntl.flock, os.rename

    def look() -> None:
        for path in folder.glob(f"{PREFIX}*"):
            fd = os.open(path, os.O_RDWR)
            with pytest.raises(BlockingIOError):
                flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)

    def watched(step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            look()
            step(*arguments)
            look()

        return run

    monkeypatch.setattr("protocol.weights.memory.fcntl.flock", watched(flock))
    monkeypatch.setattr("protocol.weights.memory.os.rename", watched(rename))
    fd, path = locked_file("new")
    assert path.exists()
    os.close(fd)
