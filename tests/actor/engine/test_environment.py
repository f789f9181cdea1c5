"""What holds before vLLM is imported: short paths for its sockets, one number of threads."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from actor.engine import environment
from actor.engine.environment import prepare_environment, socket_parent
from protocol.run.threads import NAMES


def test_a_long_path_for_temporary_files_has_no_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert socket_parent() == tempfile.gettempdir()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = tempfile.mkdtemp(prefix="dynatok-kv-", dir=socket_parent())
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{folder}/events")  # OSError where the path is too long
        os.unlink(f"{folder}/events")
    finally:
        os.rmdir(folder)


def test_where_no_path_is_short_enough_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(ValueError, match="set TMPDIR to a short path"):
        socket_parent()


@pytest.mark.parametrize(
    ("set_before", "extra", "wanted"),
    [
        ({"OMP_NUM_THREADS": "3"}, {}, ["3", "3", "3"]),
        ({"OMP_NUM_THREADS": "3"}, {"MKL_NUM_THREADS": "2"}, ["3", "2", "3"]),
        (dict.fromkeys(NAMES, "1"), {"OMP_NUM_THREADS": "4"}, ["4", "4", "4"]),
    ],
)
def test_all_libraries_are_told_one_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
    set_before: dict[str, str],
    extra: dict[str, str],
    wanted: list[str],
) -> None:
    monkeypatch.setattr(environment, "is_cpu_build", lambda: True)
    for name in ["VLLM_RPC_BASE_PATH", *NAMES]:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    try:
        prepare_environment(extra, eager=True)
        assert [os.environ[name] for name in NAMES] == wanted
    finally:
        os.environ.clear()
        os.environ.update(before)
