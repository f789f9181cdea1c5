"""The real `dynatok collect`: real engine, real kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

import launch
from dynatok_online.data.shards import JOURNAL

ROOT = Path(launch.__file__).parent.parent


def collect(out: Path, count: int) -> subprocess.Popen[str]:
    config = ROOT / "launch" / "configs" / "tiny-collect.yaml"
    flags = ["--out", str(out), "--trajectories", str(count), "--shard-size", "40"]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "collect", str(config), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def held(out: Path) -> int:
    journal = out / JOURNAL
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    return lines + 40 * len(list(out.glob("part-*.parquet")))


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_three_times_it_ends_with_exactly_as_many_as_asked_for(tmp_path: Path) -> None:
    out, count = tmp_path / "out", 400
    for _ in range(3):
        process = collect(out, count)
        before, deadline = held(out), time.monotonic() + 240
        while held(out) < min(before + 50, count - 30):
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = collect(out, count)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr[-2000:]
    said = json.loads(stdout.splitlines()[-1])
    assert said["trajectories"] == count
    assert 0 < said["collected_now"] < count
    data = datasets.load_dataset(
        "parquet", data_files=str(out / "*.parquet"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert len(data) == len(set(data["trajectory_id"])) == count
    assert min(map(len, data["edits"])) >= 2
    assert not (out / JOURNAL).exists()
