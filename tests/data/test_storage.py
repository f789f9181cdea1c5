"""Trajectories on disk come back as they were, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dynatok_online.data.storage import (
    data_files,
    features,
    read_trajectories,
    schema,
    write_trajectories,
)
from dynatok_online.trajectory import Edit, Trajectory, to_row
from tests.simulate import simulate


def made(count: int = 3) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    edit = Edit("s0", "b", 2, 3, "schedule")
    return [
        msgspec.structs.replace(
            simulate(rng, name=f"t{i}", block_size=2), edits=(edit,), info={"task": "x"}
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    assert write_trajectories(path, made()) == 3
    assert [to_row(one) for one in read_trajectories(path)] == [to_row(one) for one in made()]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_logprobs_that_are_not_known_stay_so(tmp_path: Path, suffix: str) -> None:
    (one,) = made(1)
    one = msgspec.structs.replace(one, logprobs=np.full_like(one.logprobs, np.nan))
    write_trajectories(tmp_path / f"a.{suffix}", [one])
    (back,) = read_trajectories(tmp_path)
    assert np.isnan(back.logprobs).all()


def test_a_folder_is_its_shards_in_order(tmp_path: Path) -> None:
    first, second, third = made()
    write_trajectories(tmp_path / "b.parquet", [second])
    write_trajectories(tmp_path / "a.jsonl", [first])
    write_trajectories(tmp_path / "c.jsonl", [third])
    (tmp_path / ".d.jsonl.partial").write_text("half a l")
    (tmp_path / "card.json").write_text("{}")
    assert [one.trajectory_id for one in read_trajectories(tmp_path)] == ["t0", "t1", "t2"]


def test_the_columns_are_those_of_a_row() -> None:
    assert schema().names == list(to_row(made(1)[0]))
    passes = schema().field("passes").type.value_type
    assert {field.name for field in passes} == to_row(made(1)[0])["passes"][0].keys()


def test_a_broken_line_is_named_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = [msgspec.json.encode(to_row(one)).decode() for one in made()]
    lines = [good[0], "", "{half", good[1], "[1]", '{"trajectory_id": "x"}', good[2]]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"data\.jsonl, line 3: not JSON"):
        list(read_trajectories(path))
    bad: list[str] = []
    assert [one.trajectory_id for one in read_trajectories(path, bad.append)] == ["t0", "t1", "t2"]
    assert [text.split(": ")[0].rpartition(", ")[2] for text in bad] == [
        "line 3",
        "line 5",
        "line 6",
    ]
    assert "a trajectory is an object" in bad[1]
    assert "pieces" in bad[2] or "passes" in bad[2]


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "a.parquet", made())
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"b\.parquet: not readable as Parquet after row 0"):
        list(read_trajectories(tmp_path))
    bad: list[str] = []
    assert len(list(read_trajectories(tmp_path, bad.append))) == 3
    assert len(bad) == 1


def test_a_path_without_trajectories_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path, "no *.jsonl or *.parquet file"),
        (Path(__file__), "write a .jsonl or .parquet file"),
    ):
        with pytest.raises(ValueError) as error:
            data_files(path)
        assert message in str(error.value)


def test_a_row_of_unknown_logprobs_is_json(tmp_path: Path) -> None:
    (one,) = made(1)
    one = msgspec.structs.replace(one, logprobs=np.full_like(one.logprobs, np.nan))
    line = json.dumps(to_row(one), allow_nan=False)
    # Rows of earlier versions hold NaN, as Python writes it.
    (tmp_path / "a.jsonl").write_text(line + "\n" + line.replace("[null", "[NaN") + "\n")
    assert "[NaN" in (tmp_path / "a.jsonl").read_text()
    back = list(read_trajectories(tmp_path))
    assert len(back) == 2
    assert all(np.isnan(each.logprobs).all() for each in back)


def test_datasets_reads_json_whose_first_rows_have_no_edits(tmp_path: Path) -> None:
    import datasets

    plain = [msgspec.structs.replace(one, edits=()) for one in made()]
    write_trajectories(tmp_path / "a.jsonl", [*plain, *made()])
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "a.jsonl"),
        features=features(),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.features == features()
    assert [len(row["edits"]) for row in loaded] == [0, 0, 0, 1, 1, 1]
    from dynatok_online.trajectory import from_row

    assert to_row(from_row(loaded[5])) == to_row(made()[2])
