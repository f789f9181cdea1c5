"""A folder of shards that is killed at any moment holds every trajectory once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dynatok_online.data.shards import JOURNAL, Shards
from dynatok_online.data.storage import read_trajectories
from dynatok_online.trajectory import Trajectory
from tests.simulate import simulate


def made(count: int) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [simulate(rng, name=f"t{i}") for i in range(count)]


def ids(folder: Path) -> list[str]:
    return sorted(one.trajectory_id for one in read_trajectories(folder))


def test_shards_are_written_as_they_fill_and_the_rest_at_the_end(tmp_path: Path) -> None:
    shards = Shards(tmp_path, size=2)
    for one in made(5):
        shards.add(one)
    assert ids(tmp_path) == ["t0", "t1", "t2", "t3"]
    shards.close()
    assert ids(tmp_path) == ["t0", "t1", "t2", "t3", "t4"]
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        f"part-0000{i}.parquet" for i in range(3)
    ]


def test_what_was_not_in_a_shard_yet_is_found_again(tmp_path: Path) -> None:
    first = Shards(tmp_path, size=10)
    for one in made(3):
        first.add(one)
    again = Shards(tmp_path, size=10)  # the first one was killed: nothing was closed
    assert again.done == {"t0", "t1", "t2"}
    with pytest.raises(ValueError, match="'t1' is already in"):
        again.add(made(2)[1])
    again.close()
    assert ids(tmp_path) == ["t0", "t1", "t2"]


def test_killed_between_shard_and_journal_nothing_counts_twice(tmp_path: Path) -> None:
    shards = Shards(tmp_path, size=10)
    for one in made(3):
        shards.add(one)
    journal = (tmp_path / JOURNAL).read_bytes()
    shards.flush()
    (tmp_path / JOURNAL).write_bytes(journal)  # as if it had not begun anew
    again = Shards(tmp_path, size=10)
    assert len(again.done) == 3
    again.close()
    assert ids(tmp_path) == ["t0", "t1", "t2"]


def test_half_a_line_never_happened_at_any_byte(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "a", size=10)
    for one in made(2):
        shards.add(one)
    journal = (tmp_path / "a" / JOURNAL).read_bytes()
    first = journal.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 1, len(journal) - 1, len(journal)):
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(journal[:cut])
        (folder / ".part-00000.parquet.abc.partial").write_bytes(b"half")
        again = Shards(folder, size=10)
        whole = journal[:cut].count(b"\n") + (cut in (first - 1, len(journal) - 1))
        assert len(again.done) == whole
        for one in made(2):
            if one.trajectory_id not in again.done:
                again.add(one)
        again.close()
        assert ids(folder) == ["t0", "t1"]
        assert [one.name for one in folder.iterdir()] == ["part-00000.parquet"]
