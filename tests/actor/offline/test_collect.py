"""Collecting on a fake engine: exactly as many as asked for, whatever was there before."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec
import pytest

from actor.offline.collect import SETTINGS, Tally, alone_in, card, collect, run
from actor.offline.config import CollectConfig
from actor.sessions.serving import Serving
from dynatok_online.data.shards import Shards
from dynatok_online.data.storage import read_trajectories
from dynatok_online.tasks.task import Task
from tests.actor.fake import FakeEngine
from tests.actor.sessions.test_live_session import B, make, task


def many() -> Iterator[Task]:
    return (msgspec.structs.replace(task((5, B)), task_id=f"t{i}") for i in count())


def go(shards: Shards, wanted: int, engine: FakeEngine | None = None) -> Tally:
    engine = engine or FakeEngine()
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    tally = Tally()
    asyncio.run(
        collect(many(), shards, wanted, 4, lambda one: make(engine, one, serving=serving), tally)
    )
    return tally


def ids(folder: Path) -> list[str]:
    return sorted(one.trajectory_id for one in read_trajectories(folder))


def test_as_many_as_asked_for_and_again_none(tmp_path: Path) -> None:
    shards = Shards(tmp_path, size=3)
    tally = go(shards, 10)
    shards.close()
    assert tally.trajectories == 10
    assert tally.numbers()["edits"] == 10
    assert ids(tmp_path) == sorted(f"t{i}" for i in range(10))
    assert go(Shards(tmp_path, size=3), 10).trajectories == 0


def test_a_collection_that_died_goes_on_without_losing_or_repeating(tmp_path: Path) -> None:
    wanted, whole = 23, sorted(f"t{i}" for i in range(23))
    for death in (3, 5, 4):
        engine = FakeEngine()
        passes = 0

        def step(request: object, death: int = death) -> None:
            nonlocal passes
            passes += 1
            if passes > death * 20 * 2:
                raise RuntimeError("killed")

        engine.on_step = step
        with pytest.raises(BaseExceptionGroup):
            go(Shards(tmp_path, size=4), wanted, engine)
    before = Shards(tmp_path, size=4).done
    assert 0 < len(before) < wanted
    shards = Shards(tmp_path, size=4)
    assert go(shards, wanted).trajectories == wanted - len(before)
    shards.close()
    assert ids(tmp_path) == whole


def test_tasks_that_leave_no_room_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as error:
        go(Shards(tmp_path), 5, FakeEngine(max_model_len=5))
    assert error.group_contains(ValueError, match="max_model_len")


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = CollectConfig(out=str(tmp_path), trajectories=3, seed=7)
    (tmp_path / SETTINGS).write_text(json.dumps({"model": "tiny", "tasks": "tiny"}))
    with pytest.raises(ValueError, match="was begun with split None, not 'train'; choose another"):
        run(config)


def test_the_card_says_what_is_there(tmp_path: Path) -> None:
    shards = Shards(tmp_path, size=3)
    go(shards, 5)
    shards.close()
    card(tmp_path, CollectConfig(out=str(tmp_path), trajectories=5, seed=7))
    text = (tmp_path / "README.md").read_text()
    assert "data_files: part-*.parquet" in text
    assert "| trajectories, shards | 5, 2 |" in text
    assert "| edits | 5, at least 1 each |" in text
    assert "| trajectory_id | `string` |" in text
    assert "seed 7" in text


def test_settings_that_cannot_be() -> None:
    for change, message in (
        ({"trajectories": 0}, "trajectories is 0"),
        ({"sessions": 0}, "sessions is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            CollectConfig(**change)  # type: ignore[arg-type]


HOLDER = """
import sys, time
from pathlib import Path
from actor.offline.collect import alone_in

with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_two_collections_into_one_folder_are_refused(tmp_path: Path) -> None:
    """The second one, and only while the first runs: it may be killed at any time."""
    config = CollectConfig(out=str(tmp_path), trajectories=3)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="another collection is writing into"):
            run(config)
        assert not (tmp_path / SETTINGS).exists()
    finally:
        first.kill()
        first.wait()
        if first.stdout is not None:
            first.stdout.close()
    with alone_in(tmp_path):
        pass
