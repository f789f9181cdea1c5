"""Task rows: schedules by rule, and one clear line for each mistake."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from dynatok_online.data.storage import write_trajectories
from dynatok_online.tasks.files import make_task, read_row, split_of, tasks_of
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import SlotState, Task

ROW: dict[str, Any] = {
    "task_id": "a",
    "prompt": "Letters: {{case}}, marks: {{marks}}\nText: ",
    "slots": {"case": ["upper", "lower"], "marks": ["no_comma", {"text": "as you like"}]},
    "max_tokens": 100,
}


def task(seed: int = 0, epoch: int = 0, **change: Any) -> Task:
    return make_task(read_row(ROW | change), seed=seed, epoch=epoch)


def test_slots_start_in_their_first_state() -> None:
    one = task()
    assert one.states == {
        "case": SlotState("UPPER CASE", "upper"),
        "marks": SlotState("no commas", "no_comma"),
    }
    assert one.edits == ()


def test_edits_at_a_token() -> None:
    one = task(edits=[{"at": 7, "slot": "case", "to": {"text": "small", "requirement": "lower"}}])
    assert [(e.index, e.slot, e.state) for e in one.edits] == [
        (7, "case", SlotState("small", "lower"))
    ]


def test_random_edits_are_the_same_for_the_same_seed_and_keep_their_distance() -> None:
    schedule = {"rule": "random", "edits": [2, 4], "gap": 10}
    made = [task(seed, schedule=schedule) for seed in range(30)]
    assert made == [task(seed, schedule=schedule) for seed in range(30)]
    assert len({one.edits for one in made}) > 20
    for one in made:
        at = [0, *(edit.index for edit in one.edits), 100]
        assert 2 <= len(one.edits) <= 4
        assert all(b - a >= 10 for a, b in pairwise(at))
    assert task(0, 1, schedule=schedule).task_id == "a@1"
    assert task(0, 1, schedule=schedule).edits != made[0].edits


def test_every_so_many_tokens() -> None:
    one = task(schedule={"rule": "every", "tokens": 30, "edits": 3})
    assert [edit.index for edit in one.edits] == [30, 60, 90]
    live = dict(one.states)
    for edit in one.edits:
        assert live[edit.slot] != edit.state, "an edit changes something"
        live[edit.slot] = edit.state


@pytest.mark.parametrize("rule", ["after_sentences", "satisfied"])
def test_edits_that_wait_for_the_text_become_rules(rule: str) -> None:
    one = task(schedule={"rule": rule, "count": 2, "edits": 3})
    assert [(r.when, r.count) for r in one.rules] == [(rule, 2)] * 3
    assert one.edits == ()


def test_a_recorded_session_is_played_back(tmp_path: Path) -> None:
    person = task(edits=[{"at": 20, "slot": "case", "to": "lower"}])
    recorded = scripted_trajectory(person, list(range(40)), lambda text: [ord(c) for c in text])
    write_trajectories(tmp_path / "session.jsonl", [recorded])
    one = task(schedule={"rule": "replay", "path": str(tmp_path / "session.jsonl")})
    assert [(e.index, e.slot, e.state) for e in one.edits] == [
        (20, "case", SlotState("lower case", "lower"))
    ]


def test_contradictions_are_never_drawn() -> None:
    slots = {"length": ["min_words:30", "max_words:20"], "more": ["max_words:50", "min_words:40"]}
    made = [
        task(
            seed,
            prompt="{{length}} {{more}}",
            slots=slots,
            schedule={"rule": "every", "tokens": 20, "edits": 3},
        )
        for seed in range(20)
    ]
    assert any(edit.state.requirement == "max_words:20" for one in made for edit in one.edits)


def test_chat_messages_become_a_template() -> None:
    row = ROW | {"prompt": "", "messages": [{"role": "user", "content": "In {{case}}{{marks}}"}]}
    one = make_task(read_row(row), chat=lambda messages: f"<u>{messages[0]['content']}</u><a>")
    assert one.template == "<u>In {{case}}{{marks}}</u><a>"
    with pytest.raises(ValueError, match="chat messages need a model with a chat template"):
        make_task(read_row(row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": "{{case}} {{tone}} {{marks}}"},
            "slot {{tone}} stands in the text, but 'slots'",
        ),
        ({"prompt": "{{case}}"}, "slot 'marks' has a state but no place"),
        ({"prompt": ""}, "write either 'prompt' or 'messages'"),
        ({"slots": {"case": "uper", "marks": "ask"}}, "did you mean 'upper'?; for a text of your"),
        (
            {"edits": [{"at": 100, "slot": "case", "to": "lower"}]},
            "edit at token 100 is outside the response; write an index from 1 to 99",
        ),
        ({"edits": [{"at": 5, "slot": "cse", "to": "lower"}]}, "did you mean 'case'"),
        (
            {"slots": {"case": "upper", "marks": "lower"}},
            "at the start slots 'case' and 'marks' ask for what no text can do",
        ),
        (
            {"edits": [{"at": 9, "slot": "marks", "to": "lower"}]},
            "from token 9 on slots 'case' and 'marks' ask for what no text can do",
        ),
        ({"schedule": {"rule": "random", "edits": 9}}, "do not fit into 100 tokens"),
        (
            {"slots": {"case": "upper", "marks": "ask"}, "schedule": {"rule": "every"}},
            "list two or more states of a slot",
        ),
        (
            {
                "edits": [{"at": 9, "slot": "case", "to": "lower"}],
                "schedule": {"rule": "every"},
            },
            "write either 'edits' or a 'schedule'",
        ),
        ({"schedule": {"rule": "replay", "path": "none.jsonl"}}, "none.jsonl: no such file"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        task(**change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"promt": "x"}, "promt"),
        ({"prompt": 3}, "$.prompt"),
        ({"schedule": {"rule": "never"}}, "$.schedule"),
        ([], "Expected `object`"),
    ],
)
def test_a_row_of_another_form_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_row(raw)
    assert message in str(error.value)


def test_rows_are_gone_through_again_and_again_split_by_name() -> None:
    rows = [(read_row(ROW | {"task_id": f"r{i}"}), f"line {i}") for i in range(40)]
    train = list(islice(tasks_of(rows, "train"), 80))
    held = {row.task_id for row, _ in rows if split_of(row) == "heldout"}
    assert 0 < len(held) < 12
    assert not held & {one.task_id for one in train}
    assert len({one.task_id for one in train}) == 80
    assert {next(tasks_of(rows, "heldout")).task_id} <= held


def test_a_bad_row_is_named() -> None:
    rows = [
        (read_row(ROW | {"task_id": f"r{i}", "split": "train", **change}), f"t.jsonl, line {i + 1}")
        for i, change in enumerate([{}, {"max_tokens": 0}, {}])
    ]
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: task 'r1': max_tokens is 0"):
        list(islice(tasks_of(rows, "train"), 3))
    with pytest.raises(ValueError, match="every row was bad"):
        next(tasks_of([], "train"))
