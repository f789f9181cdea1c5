"""Every example of docs/data.md does what the page says."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from actor.task_source import tasks
from dynatok_online.prompt import Encoder, chat_of
from dynatok_online.tasks.files import make_task, read_row
from dynatok_online.tasks.gold import gold
from dynatok_online.tasks.rendering import border_notes
from dynatok_online.tasks.task import Task
from tests.prompt.test_chat_templates import family

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
ROWS = [line for kind, text in BLOCKS if kind == "jsonl" for line in text.splitlines()]


def test_the_guide_has_examples_of_every_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"jsonl", "yaml", "python", "bash"}
    assert len(ROWS) >= 8


@pytest.mark.parametrize("line", ROWS)
def test_rows(line: str) -> None:
    tokenizer = family("smollm2")
    encoder, chat = Encoder.of(tokenizer), chat_of(tokenizer, "smollm2")
    row = read_row(json.loads(line))
    task = make_task(row, chat=chat)
    assert task.render(task.states)
    assert border_notes(task, encoder) == []
    if row.response is not None:
        task, tokens, stopped = gold(row, encoder, chat=chat)
        text = row.response if isinstance(row.response, str) else None
        text = text or "".join(one.text for one in row.response)  # type: ignore[union-attr]
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == text
        assert stopped == row.stop == (tokens[-1] in (encoder.stop, encoder.turn_stop))
        if not isinstance(row.response, str):
            (edit,) = task.edits
            assert tokenizer.decode(tokens[: edit.index]).strip() == row.response[0].text.strip()


def test_a_literal_is_the_text_that_it_says() -> None:
    (line,) = [line for line in ROWS if "frac" in line]
    task = make_task(read_row(json.loads(line)))
    assert task.render(task.states).startswith(r"Explain \frac{{a}}{{b}} in no commas")


def test_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    monkeypatch.chdir(tmp_path)
    question = {"question": r"What is \frac{{a}}{b}? <|im_end|>"}
    Path(yaml.safe_load(text)["source"]).write_text(json.dumps(question) + "\n")
    Path("tasks.yaml").write_text(text)
    (task,) = islice(tasks("tasks.yaml", "train", 0), 1)
    assert task.render(task.states).startswith(question["question"] + "\nStyle: UPPER CASE")
    assert task.edits


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (text for kind, text in BLOCKS if kind == "python"):
        space: dict[str, Any] = {}
        exec(text, space)
        if "my_tasks" in space:
            made = list(space["my_tasks"]())
            assert all(isinstance(one, Task) for one in made)
            assert made[0].edits[0].index == 30
