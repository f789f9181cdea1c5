"""Gold of a model's own texts: what is asked, what is kept, how a file is resumed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actor.offline.config import GoldConfig
from actor.offline.gold import PATIENCE, Maker, make, next_text, run, stored
from actor.task_source import task_rows
from dynatok_online.prompt import Encoder
from dynatok_online.requirements import requirement
from dynatok_online.tasks.files import read_row
from dynatok_online.tasks.gold import gold
from dynatok_online.tasks.task import Task
from tests.tasks.test_rewriting import TEXT

ROWS = [
    {
        "prompt": "Write about the {place}.\nLetters: {{case}}\nText: ".replace("{place}", place),
        "slots": {"case": ["upper", "lower", "title"]},
        "schedule": {"rule": "random", "edits": [1, 2]},
        "split": "train",
    }
    for place in ("sea", "hill")
]


def maker(tmp_path: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Maker:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = GoldConfig(tasks=str(path), out=str(tmp_path / "gold.jsonl"), **changes)
    return Maker(config, task_rows(str(path)), None)


def made(one: Maker, wanted: int, begun: int = 0, text: str = TEXT) -> tuple[list[Any], Any]:
    kept: list[Any] = []
    counts: Counter[str] = Counter()

    async def write(task: Task) -> str:
        await asyncio.sleep(0)
        return text

    asyncio.run(make(one, wanted, begun, 4, write, kept.append, counts))
    return kept, counts


def test_the_model_is_asked_without_the_lines_that_hold_slots(tmp_path: Path) -> None:
    one = maker(tmp_path)
    assert [one.plain(i).template for i in (0, 1, 2)] == [
        "Write about the sea.\nText: ",
        "Write about the hill.\nText: ",
        "Write about the sea.\nText: ",
    ]
    assert not one.plain(0).edits
    assert len({one.plain(i).seed for i in range(6)}) == 6


def test_rows_are_gold_whose_segments_follow_their_states(tmp_path: Path) -> None:
    kept, counts = made(maker(tmp_path), 20)
    assert counts == {"sampled": counts["sampled"], "kept": 20}
    begun = set()
    for raw in kept:
        row = read_row(raw)
        task, tokens, stopped = gold(row, Encoder(lambda text: [*map(ord, text)], stop=7))
        assert stopped
        assert 1 <= len(task.edits) <= 2
        text = "".join(map(chr, tokens[:-1]))
        begun.add(task.states["case"].requirement)
        for at, end in zip(
            [0, *(edit.index for edit in task.edits)],
            [*(edit.index for edit in task.edits), len(text)],
            strict=True,
        ):
            name = str(task.states_at(at)["case"].requirement)
            assert requirement(name).verify(text[at:end], before=text[:at], after=text[end:]).holds
    assert begun == {"upper", "lower", "title"}  # not the listed one each time


def test_a_short_text_takes_fewer_edits_and_a_shorter_one_none(tmp_path: Path) -> None:
    rows = [row | {"schedule": {"rule": "every", "tokens": 20, "edits": 2}} for row in ROWS]
    two_parts = " ".join(TEXT.split()[:18]) + " and so it went on and on in the end."
    kept, _ = made(maker(tmp_path, rows), 3, text=two_parts)
    assert {len(row["response"]) for row in kept} == {2}
    kept, counts = made(maker(tmp_path, rows), 3, text="The sea is wide.")
    assert kept == []
    assert counts == {"sampled": counts["sampled"], "short": counts["sampled"]}
    assert 3 * PATIENCE <= counts["sampled"] < 3 * PATIENCE + 4  # it gives up


def test_a_number_gives_the_same_row_in_any_process(tmp_path: Path) -> None:
    first, again = (list(maker(tmp_path).rows(5, TEXT)) for _ in range(2))
    assert first == again
    assert first != list(maker(tmp_path, seed=1).rows(5, TEXT))


def test_one_text_is_rewritten_several_times_for_every_task_that_asks_for_it(
    tmp_path: Path,
) -> None:
    style = {
        "prompt": "Write about the sea.\nStyle: {{form}}\nText: ",
        "slots": {"form": ["no_comma", "exclaim"]},
        "schedule": {"rule": "random", "edits": [1, 2]},
        "split": "train",
    }
    one = maker(tmp_path, [*ROWS, style], rewrites=3)
    assert one.plain(0).template == one.plain(2).template  # the sea, twice
    kept = [row for row in one.rows(0, TEXT) if isinstance(row, dict)]
    assert [row["task_id"] for row in kept] == ["gold-0", "gold-1", "gold-2"]
    assert ["{{form}}" in row["prompt"] for row in kept] == [False, True, False]
    assert kept[0]["response"] != kept[2]["response"]
    hill = [row for row in one.rows(1, TEXT) if isinstance(row, dict)]
    assert [row["task_id"] for row in hill] == ["gold-3", "gold-4", "gold-5"]
    assert all("hill" in row["prompt"] for row in hill)


def test_a_file_of_several_rows_a_text_is_resumed_with_the_next_text(tmp_path: Path) -> None:
    one = maker(tmp_path, rewrites=3)
    kept, _ = made(one, 4)
    numbers = {int(row["task_id"].removeprefix("gold-")) for row in kept}
    assert next_text(max(numbers) + 1, 3) == 2
    more, _ = made(one, 4, begun=2)
    assert not numbers & {int(row["task_id"].removeprefix("gold-")) for row in more}


def test_a_file_is_resumed_behind_its_highest_number(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    assert stored(path) == (0, 0)
    kept, _ = made(maker(tmp_path), 6)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept[:4]))
    held, begun = stored(path)
    assert held == 4
    more, _ = made(maker(tmp_path), 3, begun)
    names = [row["task_id"] for row in (*kept[:4], *more)]
    assert len(set(names)) == 7
    path.write_text(json.dumps({"task_id": "mine", "prompt": "x"}) + "\n")
    with pytest.raises(ValueError, match="not written by `dynatok gold`; choose another file"):
        stored(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0] | {"slots": {"case": ["upper", "rhyme"]}}], "rhyme"),
        ([ROWS[0] | {"prompt": "Write in {{case}} about the sea."}], "give slots their own"),
        ([ROWS[0] | {"split": "heldout"}], "has no row of the split 'train'"),
    ],
)
def test_rows_that_cannot_be_used_are_said_before_anything_is_started(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        maker(tmp_path, rows)


def test_sources_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tiny' gives no rows"):
        run(GoldConfig(out=str(tmp_path / "gold.jsonl")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": 0}, "texts is 0"),
        ({"rewrites": 0}, "rewrites is 0"),
        ({"words": (20, 10)}, "words is"),
        ({"words": (20, 40)}, "at least twice least_words"),
        ({"out": "data/gold"}, "name a .jsonl file"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GoldConfig(**changes)
