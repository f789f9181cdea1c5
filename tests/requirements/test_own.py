"""Verifiers of your own, named by module and function."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynatok_online.requirements import Unit, refuse_code, requirement
from dynatok_online.requirements.own import code_of

SOURCE = """
def loud(text, before):
    "Shout. Really."
    return [(i, i + 1, True) for i, sign in enumerate(text) if sign == "!"]

def share(text, before):
    return text.count("x") / len(text) if text else None

def follows(text, before):
    return before.endswith("so ")

def outside(text, before):
    return [(0, len(text) + 1, True)]

def fails(text, before):
    return 1 / 0

def much(text, before):
    return 7

def one(text):
    return True

number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pack").mkdir()
    (tmp_path / "own_pack" / "__init__.py").write_text("")
    (tmp_path / "own_pack" / "rules.py").write_text(SOURCE)
    (tmp_path / "own_rules.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    requirement.cache_clear()


def test_units_are_placed_in_the_text_they_were_found_in() -> None:
    one = requirement("own_pack.rules:loud")
    assert one.text == "Shout. Really"
    assert one.verify("a! b!", before="before").units == (Unit(1, 2, True), Unit(4, 5, True))
    assert one.verify("quiet").score is None


def test_a_score_is_the_score() -> None:
    verdict = requirement("own_rules:share").verify("axxx", before="xx")
    assert verdict.score == 0.75
    assert verdict.holds is False
    assert requirement("own_rules:share").verify("xx").holds is True
    assert requirement("own_rules:share").verify("").holds is None


def test_what_came_before_is_given() -> None:
    assert requirement("own_rules:follows").verify("it is", before="and so ").holds is True
    assert requirement("own_rules:follows").verify("it is", before="and").holds is False
    assert requirement("own_rules:follows").text == "follows"


def test_it_is_asked_for_together_with_others() -> None:
    both = requirement("own_rules:share+lower")
    assert both.verify("xx aa").score == pytest.approx((0.4 + 1 + 1) / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_pack.nowhere:loud", "nor a Python module 'own_pack.nowhere'"),
        ("no_such_module_of_mine.x:loud", "nor a Python module 'no_such_module_of_mine'"),
        ("own_rules:lowd", "module 'own_rules' has no 'lowd'; write def lowd(text, before) there"),
        ("own_rules:one", "is no function of two texts; write def one(text, before)"),
        ("own_rules:number", "is no function of two texts"),
        ("own_broken:loud", "importing it failed: No module named 'not_there_at_all'"),
        ("languag:en", "did you mean 'language'"),
    ],
)
def test_what_cannot_be_used_is_said(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        requirement(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", "a unit from 0 to 3 of a text of 2 characters"),
        ("fails", "your function failed on 'ab': ZeroDivisionError"),
        ("much", "it returned 7; a score is from 0 to 1"),
    ],
)
def test_a_function_that_goes_wrong_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"own_rules:{name}") as error:
        requirement(f"own_rules:{name}").verify("ab")
    assert message in str(error.value)


def test_names_of_code_are_told_apart_without_importing_it() -> None:
    assert code_of("upper+os:system") == ["os:system"]
    assert code_of("include:boats+ends_with:x+min_letter:a=3") == []
    refuse_code({"slots": {"a": ["upper", {"text": "os:system", "requirement": "max_words:3"}]}})
    with pytest.raises(ValueError, match="'antigravity:geohash' would be code of this machine"):
        refuse_code({"slots": {"a": ["upper", {"requirement": "no_e+antigravity:geohash"}]}})
