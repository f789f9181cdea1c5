"""The lock file of a build that was killed must not stop later starts."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from learner import communication_op


class Builder:
    name = "some_op"

    def load(self, verbose: bool) -> None:
        assert not (self.folder / "lock").exists(), "torch would wait for ever"
        self.loaded = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded = False


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    folder = tmp_path / "some_op"
    folder.mkdir()
    made = Builder(folder)
    monkeypatch.setattr(get_accelerator(), "create_op_builder", lambda name: made, raising=False)
    monkeypatch.setattr(cpp_extension, "_get_build_directory", lambda name, verbose: str(folder))
    return made


def test_a_stale_lock_file_is_removed(builder: Builder) -> None:
    (builder.folder / "lock").touch()
    communication_op.build()
    assert builder.loaded


def test_a_build_under_way_is_waited_for_but_not_for_ever(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(communication_op, "DEADLINE", 0.3)
    with open(builder.folder.parent / "some_op.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process has been compiling"):
            communication_op.build()
    assert not builder.loaded
