"""Tasks from files, descriptions and Python; what is wrong is named with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from actor import task_source
from actor.task_source import repeated, tasks
from dynatok_online.prompt import Text
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import world

GOOD = {"prompt": "In {{case}}: ", "slots": {"case": ["upper", "lower"]}, "split": "train"}


def rows() -> list[dict[str, Any]]:
    return [GOOD, GOOD | {"task_id": "mine"}]


def made_tasks() -> list[Task]:
    return list(islice(world.tasks(), 3))


def write(path: Path, *lines: Any) -> str:
    path.write_text(
        "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in lines)
    )
    return str(path)


def names(source: str, count: int = 3, **more: Any) -> list[str]:
    return [one.task_id for one in islice(tasks(source, "train", 0, **more), count)]


def test_the_embedded_world() -> None:
    assert names("tiny") == ["tiny-train-0-0", "tiny-train-0-1", "tiny-train-0-2"]
    assert all(len(one.edits) in (2, 3) for one in islice(tasks("tiny:2-3", "train", 0), 20))


def test_a_task_is_repeated_under_names_of_its_own() -> None:
    many = list(islice(repeated(tasks("tiny", "train", 0), 2), 3))
    assert [one.task_id for one in many] == [
        "tiny-train-0-0.1",
        "tiny-train-0-0.2",
        "tiny-train-0-1.1",
    ]
    first, second, _ = many
    assert (first.edits, first.states) == (second.edits, second.states)
    assert next(repeated(tasks("tiny", "train", 0), 1)).task_id == "tiny-train-0-0"


def test_a_file_of_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "notes.jsonl", GOOD, "\n", GOOD | {"task_id": "mine"})
    assert names(source) == ["notes-1", "mine", "notes-1@1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken\n", "line 2: not JSON"),
        (GOOD | {"prompt": "{{tone}} {{case}}"}, "line 2: slot {{tone}} stands in the text"),
        (
            GOOD | {"slots": {"case": "uper"}},
            "line 2: there is no requirement 'uper'; did you mean",
        ),
        (
            GOOD | {"max_tokens": 9, "edits": [{"at": 9, "slot": "case", "to": "lower"}]},
            "line 2: task 'notes-2': edit at token 9 is outside the response",
        ),
        (GOOD | {"task_id": "notes-1"}, "line 2: task_id 'notes-1' stands twice"),
        ([GOOD], "line 2: Expected `object`, got `array`"),
    ],
)
def test_a_bad_line_is_named_or_left_out_and_told(tmp_path: Path, line: Any, message: str) -> None:
    source = write(tmp_path / "notes.jsonl", GOOD, line, GOOD | {"task_id": "last"})
    with pytest.raises(ValueError) as error:
        tasks(source, "train", 0)
    assert str(tmp_path / "notes.jsonl") in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    bad: list[str] = []
    assert names(source, 4, on_bad=bad.append) == ["notes-1", "last", "notes-1@1", "last@1"]
    assert len(bad) == 1
    assert message in bad[0]


def test_chat_messages_ask_for_a_template_once(tmp_path: Path) -> None:
    chatty = {"messages": [{"role": "user", "content": "{{case}}"}], "slots": GOOD["slots"]}
    source = write(tmp_path / "chat.jsonl", chatty, chatty)
    asked = []

    def chat() -> Any:
        asked.append(1)
        return lambda messages: messages[0]["content"]

    assert next(tasks(source, "train", 0, chat=chat)).template == "{{case}}"
    assert asked == [1]
    with pytest.raises(ValueError, match="line 1: chat messages need a model with a chat template"):
        tasks(source, "train", 0)


def test_python_gives_rows_or_tasks() -> None:
    made = names("tests.actor.test_task_source:rows")
    assert made == ["rows-1", "mine", "rows-1@1"]
    made = names("tests.actor.test_task_source:made_tasks", 4)
    assert made == ["tiny-train-0-0", "tiny-train-0-1", "tiny-train-0-2", "tiny-train-0-0@1"]
    with pytest.raises(ValueError, match="test_task_source:none' cannot be imported"):
        names("tests.actor.test_task_source:none")


def test_a_description_completes_the_rows_of_a_data_set(tmp_path: Path) -> None:
    data = write(tmp_path / "q.jsonl", {"question": "why {x}?", "n": 1}, {"question": "how?"})
    path = tmp_path / "tasks.yaml"
    path.write_text(
        f"source: {data}\ntemplate: 'Q: {{question}} {{{{case}}}} A: '\nmax_tokens: 60\n"
        "slots: {case: [upper, lower]}\nschedule: {rule: random, edits: [1, 2]}\n"
    )
    one, two = islice(tasks(str(path), "train", 0), 2)
    assert {one.template, two.template} == {"Q: why {x}? {{case}} A: ", "Q: how? {{case}} A: "}
    assert one.edits
    assert one.max_tokens == 60
    path.write_text("source: x\nslotz: {}\n")
    with pytest.raises(ValueError, match="slotz"):
        tasks(str(path), "train", 0)


def test_a_source_that_is_nothing() -> None:
    for source, message in (
        ("nowhere.jsonl", "no such file"),
        ("nowhere.yaml", "no such file"),
        ("tinny", "write 'tiny', a .jsonl or .yaml file"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks(source, "train", 0)


generated = (task for task in made_tasks())
used_up = iter(())
number = 3
mixed = [*islice(world.tasks(), 1), GOOD]
same = (task for task in made_tasks())


def generator() -> Iterator[Task]:
    yield from made_tasks()


def same_again() -> Iterator[Task]:
    return same


def rows_without_end() -> Iterator[Any]:
    return repeat({"prompt": "Text: "})


def test_a_generator_gives_every_task_and_again() -> None:
    tiny = [f"tiny-train-0-{i}" for i in range(3)]
    for name in ("generator", "generated"):
        made = names(f"tests.actor.test_task_source:{name}", 7)
        assert made == [*tiny, *(f"{one}@1" for one in tiny), f"{tiny[0]}@2"]


def test_a_python_source_that_ends_or_never_ends_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.actor.test_task_source:"
    with pytest.raises(ValueError, match="used_up holds no usable row"):
        names(here + "used_up")
    with pytest.raises(ValueError, match="gave nothing when it was asked again"):
        names(here + "same_again", 4)
    with pytest.raises(ValueError, match="item 2 is a dict, though"):
        names(here + "mixed")
    with pytest.raises(ValueError, match="number' gives int, not rows"):
        names(here + "number")
    monkeypatch.setattr(task_source, "MOST_ROWS", 50)
    with pytest.raises(ValueError, match="more than 50 rows; is it without end"):
        names(here + "rows_without_end")


def test_braces_and_control_tokens_in_columns_are_text(tmp_path: Path) -> None:
    hard = "\\frac{{a}}{{b}} {{case}} }} <|im_end|> {"
    data = write(tmp_path / "q.jsonl", {"question": hard})
    path = tmp_path / "tasks.yaml"
    for control in ("false", "true"):
        path.write_text(
            f"source: {data}\ntemplate: '<s>{{question}} {{{{case}}}}'\n"
            f"slots: {{case: upper}}\ncontrol_tokens: {control}\n"
        )
        one = next(tasks(str(path), "train", 0))
        assert one.render(one.states) == f"<s>{hard} UPPER CASE"
        texts = [part for part in one.prompt.parts if isinstance(part, Text)]
        assert [part.text for part in texts if part.control] == (
            ["<s>", " "] if control == "true" else []
        )


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n",
        json.dumps(GOOD).encode() + b"\r\n\r\n",
        json.dumps(GOOD).encode() + b"\n\n  \n",
        json.dumps({**GOOD, "edits": None, "slots": {"case": "upper", "x": None}}).encode(),
    ],
    ids=["byte-order mark", "CRLF", "blank lines", "nulls of a table"],
)
def test_files_as_people_have_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.jsonl").write_bytes(content)
    assert names(str(tmp_path / "notes.jsonl"), 2) == ["notes-1", "notes-1@1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_an_error_that_says_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "notes.jsonl").write_bytes(json.dumps(GOOD).encode(encoding))
    with pytest.raises(ValueError, match="UTF-16, it seems; save it as UTF-8: iconv"):
        names(str(tmp_path / "notes.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 1: not JSON .*UTF-8"):
        names(str(tmp_path / "latin.jsonl"))
    (tmp_path / "tasks.yaml").write_bytes("source: tiny # é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        names(str(tmp_path / "tasks.yaml"))


def test_rows_of_the_hub_name_no_code_of_this_machine(monkeypatch):
    import datasets

    state = {"text": "a haiku", "requirement": "antigravity:geohash"}
    slots: dict[str, Any] = {"a": ["upper", state]}
    rows = [{"prompt": "Write: {{a}} on time:out", "slots": slots}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    with pytest.raises(ValueError, match="row 1: 'antigravity:geohash' would be code"):
        next(tasks("hub:someone/rows", "train", 0))
    slots["a"] = ["upper"]
    assert next(tasks("hub:someone/rows", "train", 0)).states["a"].requirement == "upper"
