"""Names, parameters, compositions and contradictions."""

import doctest
import textwrap
from pathlib import Path

import pytest

from dynatok_online.requirements import KINDS, REQUIREMENTS, contradiction, family, requirement
from dynatok_online.requirements.kinds import GENERAL
from dynatok_online.tiny import topics


def test_unknown_names_are_answered_with_the_nearest_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'upper'"):
        requirement("uper")
    with pytest.raises(ValueError, match="did you mean 'max_words'"):
        requirement("max_word:3")
    with pytest.raises(ValueError, match="use one of: upper, lower"):
        requirement("xxxxxxxx")
    with pytest.raises(ValueError, match="did you mean 'case'"):
        family("cases")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upper:3", "takes no parameter; write 'upper'"),
        ("max_words", "write a whole number where '' stands (as in 'max_words:20')"),
        ("max_words:-3", "write a whole number where '-3' stands"),
        ("min_words:1000000000", "write a whole number up to 10,000 where '1000000000' stands"),
        ("min_letter:a=10001", "up to 10,000 where '10001' stands (as in 'min_letter:a=5')"),
        ("bullets:" + "9" * 900, "up to 10,000 where '9999"),
        ("include:" + "owl," * 400, "has 1,608 characters; write at most 1,000"),
        ("no_repeated_runs:0", "write 1 or more where '0' stands"),
        ("include:", "write words after the colon"),
        ("min_keyword:owl", "write a word, =, and a number"),
        ("min_letter:owl=3", "write one letter where 'owl' stands"),
        ("ends_with: ", "write a phrase"),
        ("language:tlh", "write one of en, de"),
    ],
)
def test_a_wrong_parameter_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        requirement(name)
    assert message in str(error.value)


def test_a_parameter_may_be_written_in_any_canonical_form() -> None:
    assert requirement("no_letter:e\u0301").verify("Café").holds is False
    assert requirement("min_words:007").verify("one two three four five six seven").holds


def test_every_example_is_a_requirement_of_its_kind() -> None:
    for kind in KINDS.values():
        one = requirement(kind.example)
        assert one.name == kind.example
        assert one.text
        assert kind.unit


def test_families() -> None:
    assert [item.name for item in family("case")] == ["upper", "lower", "title"]
    assert [item.name for item in family("numbers")] == ["digits", "spelled"]
    assert all(name == item.name for name, item in REQUIREMENTS.items())


def test_a_composition_asks_for_both() -> None:
    both = requirement("upper+no_comma")
    assert both.verify("OWLS AND TREES").holds
    assert not both.verify("OWLS, TREES").holds
    assert not both.verify("owls and trees").holds
    assert both.text == "UPPER CASE and no commas"
    with pytest.raises(ValueError, match="'upper' and 'lower' cannot both hold"):
        requirement("upper+lower")
    with pytest.raises(ValueError, match="'uper'"):
        requirement("no_comma+uper")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("upper", "title"),
        ("exclaim", "ask"),
        ("json", "quoted"),
        ("language:en", "language:de"),
        ("min_words:30", "max_words:20"),
        ("min_sentences:9", "max_words:8"),
        ("digits", "no_digits"),
        ("include:owls", "forbid:Owls,logs"),
        ("include:trees", "no_e"),
        ("min_letter:e=1", "no_e"),
        ("min_letter:a=5", "max_letter:a=4"),
        ("ends_with:Well, bye", "no_comma"),
        ("starts_with:Room 7", "no_digits"),
        ("bullets:2", "bullets:3"),
        ("upper+min_words:30", "no_comma+max_words:20"),
    ],
)
def test_contradictions(one: str, other: str) -> None:
    assert "cannot both hold" in contradiction(one, other)
    assert contradiction(other, one)
    assert not contradiction(one, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("upper", "no_comma"),
        ("upper", "digits"),
        ("min_words:20", "max_words:20"),
        ("include:owls", "forbid:gulls"),
        ("include:logs", "no_e"),
        ("max_letter:a=4", "min_letter:a=4"),
    ],
)
def test_what_can_hold_at_once(one: str, other: str) -> None:
    assert not contradiction(one, other)
    assert requirement(f"{one}+{other}").text


PAGE = Path(__file__).parents[2] / "docs" / "requirements.md"


def test_the_examples_of_the_page_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctest.testfile(str(PAGE), module_relative=False) == (0, 2)
    code = PAGE.read_text().split("# my_rules.py, named as my_rules:haiku\n")[1].split("\n\n")[0]
    (tmp_path / "my_rules.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    haiku = requirement("my_rules:haiku")
    assert haiku.text == "three lines"
    assert haiku.verify("an owl\na log\na hill").holds
    assert not haiku.verify("an owl").holds


def test_the_page_lists_every_kind() -> None:
    page = PAGE.read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    known = [*GENERAL, *topics.KINDS]
    assert listed == [kind.example for kind in known]
    assert f"{len(GENERAL)} kinds" in page
