"""Configuration errors: one line, the full path, what to write instead."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launch.decode import ConfigError, decode, merge, parse_flags, parse_yaml, read_yaml


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sessions: int = 4
    rate: float = 1.0
    label: str | None = None
    engine: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise ValueError(f"inner.sessions is {self.sessions}; write 1 or more")


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int = 0
    name: str = "run"
    inner: Inner = Inner()
    either: dict[str, Any] | str = {}
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"sede": 1}, "f.yaml: unknown key 'sede'; did you mean 'seed'?"),
        (
            {"inner": {"sesions": 1}},
            "f.yaml: unknown key 'inner.sesions'; did you mean 'inner.sessions'?",
        ),
        ({"sessions": 1}, "f.yaml: unknown key 'sessions'; did you mean 'inner.sessions'?"),
        (
            {"xyzzy": 1},
            "f.yaml: unknown key 'xyzzy'; the top level has seed, name, inner, either, words",
        ),
        (
            {"inner": {"xyzzy": 1}},
            "f.yaml: unknown key 'inner.xyzzy'; "
            "the section 'inner' has sessions, rate, label, engine",
        ),
        ({"inner": {"sessions": "many"}}, "f.yaml: inner.sessions must be int, got str ('many')"),
        ({"inner": 3}, "f.yaml: inner must be section, got int (3)"),
        ({"inner": {"sessions": -1}}, "f.yaml: inner.sessions is -1; write 1 or more"),
        ({"seed": None}, "f.yaml: seed must be int, got null"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_path(raw, message):
    with pytest.raises(ConfigError) as caught:
        decode(raw, Outer, "f.yaml")
    assert str(caught.value) == message


def test_sections_declared_as_dict_pass_through():
    assert decode({"inner": {"engine": {"any": {"name": 1}}}}, Outer, "f").inner.engine == {
        "any": {"name": 1}
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("5E6", 5e6), ("-1.5e+2", -150.0), ("1", 1), ("0.5", 0.5), ("1e", "1e")],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert parse_yaml(f"x: {text}") == {"x": value}
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is written twice"),
        ("seed: [1\n", "line 2, column 1: expected ',' or ']'"),
        ("- 1\n", "holds a list; write 'name: value' lines"),
        ('a: "\\ud800"\n', "line 1, column 4: a text holds half a character"),
        ("!!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "tiny.yaml").touch()
    with pytest.raises(ConfigError, match=r"tinny.yaml: no such file; did you mean .*tiny.yaml\?"):
        read_yaml(tmp_path / "tinny.yaml")


def test_flags_become_a_nested_mapping():
    flags = ["--seed", "7", "--inner.rate=1e-3", "--inner.engine.enforce-eager", "--name", "007"]
    assert parse_flags(flags, Outer) == {
        "seed": 7,
        "inner": {"rate": 1e-3, "engine": {"enforce_eager": True}},
        "name": "007",
    }


def test_flags_take_negative_numbers_text_and_null():
    flags = ["--inner.engine.max-steps", "-1", "--inner.label", "null", "--either", "a.json"]
    assert parse_flags(flags, Outer) == {
        "inner": {"engine": {"max_steps": -1}, "label": None},
        "either": "a.json",
    }


@pytest.mark.parametrize("text", ["a,b:1-2", "[a, b:1-2]", "a, b:1-2"])
def test_words_are_parted_by_commas_or_written_as_a_list(text):
    assert parse_flags(["--words", text], Outer) == {"words": ["a", "b:1-2"]}
    assert parse_flags(["--words", "a"], Outer) == {"words": ["a"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sede", "1"], "--sede: unknown key 'sede'; did you mean 'seed'?"),
        (["--inner.sesions", "1"], "did you mean 'inner.sessions'?"),
        (["seed", "1"], "'seed' is not a flag; write --section.field VALUE, such as --seed 7"),
        (["--seed", "[1"], "--seed: line 1"),
    ],
)
def test_a_wrong_flag_is_named(flags, message):
    with pytest.raises(ConfigError) as caught:
        parse_flags(flags, Outer)
    assert message in str(caught.value)


def test_escapes_of_json_are_characters(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text('name: "\\ud83e\\udd89"\n')
    assert read_yaml(path) == {"name": "🦉"}


@pytest.mark.parametrize(
    "flags", [["--name", "\udcff"], ["--name=\udcff"], ["--na\udcffme", "x"], ["--seed", "\udcff"]]
)
def test_bytes_that_are_no_text_are_refused(flags):
    with pytest.raises(ConfigError):
        parse_flags(flags, Outer)


def test_merge_leaves_both_as_they_were():
    base = {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
    over = {"a": {"b": 9}, "d": "path"}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": "path"}
    assert base == {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
