"""Whatever a person writes, the answer is a usable setting or one clear line: never a traceback.

A few hundred inputs each time; `-m slow` tries 100,000.
"""

from __future__ import annotations

import contextlib
import io
import json
import string
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch
from actor.demo.config import DemoConfig
from actor.offline.config import CollectConfig, EvalConfig, GoldConfig
from actor.task_source import tasks
from dynatok_online.tasks.gold import load_training_data
from dynatok_online.trajectory import Trajectory, to_row
from launch import cli
from launch.config import RunConfig
from launch.decode import all_fields
from learner.offline.config import SelectConfig, TrainConfig
from tests.written import make

CONFIGS = Path(launch.__file__).parent / "configs"
VERBS: dict[str, tuple[type[Any], Path]] = {
    "launch": (RunConfig, CONFIGS / "tiny.yaml"),
    "collect": (CollectConfig, CONFIGS / "tiny-collect.yaml"),
    "train": (TrainConfig, CONFIGS / "tiny-train.yaml"),
    "select": (SelectConfig, CONFIGS / "tiny-select.yaml"),
    "eval": (EvalConfig, CONFIGS / "tiny-eval.yaml"),
    "demo": (DemoConfig, CONFIGS / "tiny-demo.yaml"),
    "gold": (GoldConfig, CONFIGS / "smollm2-gold.yaml"),
}
Check = Callable[[Any], None]

# ---- what is written ----

odd_text = st.text(max_size=12) | st.sampled_from(
    ["", "-", "--", "=", "~", "*", "&a", "!!python/name:os.system", "{{", "}}", "\x00", "é\u2028x"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**63, -(2**64)])
    | st.floats()
    | odd_text
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=8,
)


def field_of(config: type[Any]) -> st.SearchStrategy[tuple[str, ...]]:
    """A path of a field: a right one, one with a slip of the pen, or none."""
    right = st.sampled_from([tuple(path.split(".")) for path, _ in all_fields(config)])
    letters = st.sampled_from(string.ascii_lowercase)

    @st.composite
    def slipped(draw: st.DrawFn) -> tuple[str, ...]:
        *above, last = draw(right)
        at = draw(st.integers(0, len(last)))
        return (*above, last[:at] + draw(letters) + last[at + draw(st.integers(0, 2)) :])

    return right | slipped() | st.lists(odd_text, min_size=1, max_size=3).map(tuple)


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, str | None, list[str]]:
    """(verb, text of its file or None for the shipped one, flags)."""
    verb = draw(st.sampled_from([*VERBS]))
    config, _ = VERBS[verb]
    text: str | None = None
    kind = draw(st.sampled_from(["shipped", "fields", "anything", "text"]))
    if kind == "fields":
        written: dict[Any, Any] = {}
        for path in draw(st.lists(field_of(config), max_size=4)):
            here = written
            for part in path[:-1]:
                here = here.setdefault(part, {})
                if not isinstance(here, dict):
                    break
            else:
                here[path[-1]] = draw(anything)
        text = yaml.safe_dump(written, allow_unicode=True)
    elif kind == "anything":
        text = yaml.safe_dump(draw(anything), allow_unicode=True)
    elif kind == "text":
        text = draw(st.text(max_size=60))
    flags: list[str] = []
    for path in draw(st.lists(field_of(config), max_size=3)):
        flag = "--" + ".".join(path).replace("_", draw(st.sampled_from("-_")))
        value = draw(odd_text | scalars.map(json.dumps) | anything.map(yaml.safe_dump))
        flags += draw(st.sampled_from([[flag, value], [f"{flag}={value}"], [flag], [value]]))
    # Not what is to be tested: these end the program by asking for help, or name another run.
    kept = [one for one in flags if one not in ("-h", "--help", "--resume", "--run", "--fields")]
    return verb, text, [one for one in kept if not one.startswith(("--run=", "-h"))]


def settings_are_read_or_refused(line: tuple[str, str | None, list[str]]) -> None:
    verb, text, flags = line
    with tempfile.TemporaryDirectory() as folder:
        path = VERBS[verb][1]
        if text is not None:
            path = Path(folder) / "written.yaml"
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = cli.main([verb, "--fields", str(path), *flags])
    said = errors.getvalue()
    assert code in (0, 2)
    if code == 0:
        assert said == ""
        assert out.getvalue().startswith("--")
    else:
        assert said.startswith("dynatok: ")
        assert len(said.splitlines()) == 1, said
        assert len(said) > len("dynatok: ") + 5


# ---- rows of data ----

GOOD_TASK: dict[str, Any] = {
    "prompt": "In {{case}}: ",
    "slots": {"case": ["upper", "lower"]},
    "edits": [{"at": 5, "slot": "case", "to": "lower"}],
    "response": "owls",
    "max_tokens": 32,
}


def rows_like(good: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The row with some of it changed, anywhere inside; or anything at all."""

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        row = json.loads(json.dumps(good))
        for _ in range(draw(st.integers(0, 3))):
            here: Any = row
            while isinstance(here, dict | list) and here:
                keys = list(here) if isinstance(here, dict) else list(range(len(here)))
                key = draw(st.sampled_from(keys))
                inner = here[key]
                if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                    here = inner
                    continue
                if draw(st.integers(0, 4)) == 0:
                    del here[key]
                else:
                    here[key] = draw(anything)
                break
        return row

    return changed() | anything


def as_file(row: Any, folder: str) -> Path:
    path = Path(folder) / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8", errors="surrogatepass")
    return path


def one_line(error: ValueError) -> None:
    assert str(error).strip()
    assert "Traceback" not in str(error)


def task_rows_are_used_or_refused(row: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            for task in islice(tasks(str(as_file(row, folder)), "train", 0), 2):
                task.render(task.states_at(0))
        except ValueError as error:
            one_line(error)


def encode(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))


def training_rows_are_used_or_refused(row: Any) -> None:
    def chat() -> Any:
        raise ValueError("no chat template")

    with tempfile.TemporaryDirectory() as folder:
        try:
            made = load_training_data(as_file(row, folder), encode=encode, chat=chat)
        except ValueError as error:
            one_line(error)
        else:
            assert all(isinstance(one, Trajectory) for one in made)
            assert all(np.isfinite(one.response).all() for one in made)


GOOD_TRAJECTORY = to_row(
    make(["ab", "cd"], [((0, -1), "xyz", ()), ((1, -1), "uv", ())], name="good")
)

CHECKS: dict[str, tuple[st.SearchStrategy[Any], Check]] = {
    "command lines": (command_lines(), settings_are_read_or_refused),
    "task rows": (rows_like(GOOD_TASK), task_rows_are_used_or_refused),
    "gold rows": (rows_like(GOOD_TASK), training_rows_are_used_or_refused),
    "trajectory rows": (
        rows_like(json.loads(json.dumps(GOOD_TRAJECTORY, default=list))),
        training_rows_are_used_or_refused,
    ),
}


def fuzz(name: str, examples: int, *, same: bool) -> None:
    """`same`: the same inputs every time."""
    strategy, check = CHECKS[name]
    often = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=same,
        suppress_health_check=list(HealthCheck),
    )
    often(given(strategy)(lambda value: check(value)))()


@pytest.mark.parametrize("name", CHECKS)
def test_whatever_is_written(name: str) -> None:
    fuzz(name, 80, same=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CHECKS)
def test_whatever_is_written_100_000_times(name: str) -> None:
    fuzz(name, 100_000 // len(CHECKS), same=False)
