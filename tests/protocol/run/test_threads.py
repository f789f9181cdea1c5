"""One number of threads for all libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from protocol.run import threads as module
from protocol.run.threads import NAMES, threads


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)


@pytest.mark.parametrize(
    ("processes", "environment", "given", "wanted"),
    [
        (2, {}, 0, ("4", "4", "4")),
        (1, {}, 0, ("8", "8", "8")),
        (9, {}, 0, ("1", "1", "1")),
        (2, {"OMP_NUM_THREADS": "3"}, 0, ("3", "3", "3")),
        (2, {"OMP_NUM_THREADS": "3,2"}, 0, ("3,2", "3", "3")),
        (2, {"MKL_NUM_THREADS": "1"}, 0, ("4", "1", "4")),
        (2, {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "1"}, 5, ("5", "5", "5")),
    ],
)
def test_who_decides(processes, environment, given, wanted):
    found = threads(processes, environment, given)
    assert tuple(found[name] for name in NAMES) == wanted


def test_libraries_in_a_child_take_it():
    """Read back from torch: its own threads, OpenMP's and MKL's."""
    code = "import json, torch; print(json.dumps(torch.__config__.parallel_info()))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | threads(2, given=1),  # without it, as many as there are cores
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.strip() for line in json.loads(said).splitlines()]
    for name in ("at::get_num_threads()", "omp_get_max_threads()", "mkl_get_max_threads()"):
        assert f"{name} : 1" in lines, lines
