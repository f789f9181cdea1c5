"""A text built to satisfy a requirement passes; one change breaks it, and is found where it is."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatok_online.requirements import requirement
from dynatok_online.requirements.kinds import GENERAL

PLAIN = ["sun", "moon", "river", "stone", "cloud", "wind", "hill", "bird", "song", "rain"]
Words = list[str]


def sentence(words: Words) -> str:
    return " ".join(words).capitalize() + "."


def add(extra: str) -> Callable[[str], tuple[str, int]]:
    """Appends something that is wrong; it begins at the returned index."""
    return lambda text: (f"{text} {extra}", len(text) + 1)


def put_first(extra: str) -> Callable[[str], tuple[str, int]]:
    return lambda text: (f"{extra} {text}", 0)


def cut(piece: str) -> Callable[[str], tuple[str, int]]:
    """Removes something that is needed: it is missed at the end of the text."""

    def change(text: str) -> tuple[str, int]:
        less = text.replace(piece, "", 1)
        return less, len(less)

    return change


Build = Callable[[Words], str]
TABLE: dict[str, tuple[Build, Callable[[str], tuple[str, int]]]] = {
    "upper": (lambda w: " ".join(w).upper(), add("low")),
    "lower": (" ".join, add("Not")),
    "title": (lambda w: " ".join(w).title(), add("low")),
    "min_capital_words:2": (lambda w: " ".join(["BIG", *w, "END"]), cut("BIG")),
    "max_capital_words:1": (lambda w: " ".join(["BIG", *w]), add("END")),
    "include:owl,elk": (lambda w: " ".join(["owl", *w, "elk"]), cut("elk")),
    "forbid:owl,elk": (" ".join, add("elk")),
    "min_keyword:owl=2": (lambda w: " ".join(["owl", *w, "owls"]), cut("owl")),
    "max_keyword:owl=1": (lambda w: " ".join(["owl", *w]), add("owl")),
    "max_repeats:1": (lambda w: " ".join(dict.fromkeys(w)), lambda t: (f"{t} {t}", len(t) + 1)),
    "no_repeated_runs:2": (
        lambda w: " ".join(["we", "saw", *dict.fromkeys(w)]),
        add("we saw"),
    ),
    "digits": (lambda w: " ".join([*w, "3"]), add("four")),
    "spelled": (lambda w: " ".join([*w, "three"]), add("4")),
    "no_digits": (" ".join, add("x4")),
    "no_e": (lambda w: " ".join(word for word in w if "e" not in word) + " sun", add("tree")),
    "no_letter:z": (" ".join, add("zoo")),
    "min_letter:z=2": (lambda w: " ".join(["zoo", *w, "zoo"]), cut("zoo")),
    "max_letter:z=1": (lambda w: " ".join(["zoo", *w]), add("zoo")),
    "no_comma": (" ".join, add("but,")),
    "brackets": (lambda w: " ".join(f"[{word}]" for word in w), add("bare")),
    "min_placeholders:2": (lambda w: " ".join(["[a]", *w, "[b]"]), cut("[a]")),
    "exclaim": (lambda w: sentence(w)[:-1] + "!", add("No.")),
    "ask": (lambda w: sentence(w)[:-1] + "?", add("No.")),
    "min_words:3": (lambda w: " ".join(["we", "saw", w[0]]), cut("saw")),
    "max_words:3": (lambda w: " ".join(w[:3]) + " a" * (3 - len(w[:3])), add("more")),
    "min_sentences:2": (lambda w: f"{sentence(w)} It was late.", cut(" It was late.")),
    "max_sentences:2": (lambda w: f"{sentence(w)} It was late.", add("Go.")),
    "short_sentences:5": (lambda w: sentence(w[:5]), add("It was a late and dark day.")),
    "paragraphs:2": (
        lambda w: f"{sentence(w)}\n***\n{sentence(w)}",
        lambda t: (t + " *** x", len(t) + 5),
    ),
    "bullets:2": (
        lambda w: f"* {sentence(w)}\n* {sentence(w)}",
        lambda t: (f"{t}\n* x", len(t) + 1),
    ),
    "json": (lambda w: str(w).replace("'", '"'), add("x")),
    "quoted": (lambda w: f'"{sentence(w)}"', add("x")),
    "headed": (lambda w: f"<<{w[0]}>>\n{sentence(w)}", cut("<<")),
    "min_highlights:2": (lambda w: " ".join(["*a*", *w, "**b**"]), cut("*a*")),
    "min_sections:2": (lambda w: f"Section 1\n{sentence(w)}\nSection 2\nx", cut("Section 2")),
    "postscript:P.S.": (lambda w: f"{sentence(w)}\nP.S. No.", cut("P.S.")),
    "starts_with:We saw": (lambda w: f"We saw {sentence(w)}", put_first("Then")),
    "ends_with:The end.": (lambda w: f"{sentence(w)} The end.", lambda t: (t + " x", len(t) + 1)),
    "language:en": (lambda w: f"The {w[0]} was in the {w[-1]}.", add("Und das ist nicht der Tag.")),
    "alliteration": (lambda w: "Seven silver seals sang.", lambda t: (t[:-1] + " loudly.", len(t))),
    "rhyme": (
        lambda w: f"{w[0]} night\n{w[-1]} light",
        lambda t: (t + "\na day\na log", len(t) + 9),
    ),
}


@pytest.mark.parametrize("name", TABLE)
@given(words=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=8))
@settings(max_examples=15)
def test_built_to_satisfy_then_broken_once(name: str, words: Words) -> None:
    build, violate = TABLE[name]
    text = build(words)
    verdict = requirement(name).verify(text)
    assert verdict.holds, (text, verdict)
    broken, index = violate(text)
    wrong = [unit for unit in requirement(name).verify(broken).units if not unit.ok]
    assert wrong, broken
    assert any(unit.start <= index <= unit.stop for unit in wrong), (broken, index, wrong)
    assert len(wrong) == 1 or name == "max_repeats:1"


def test_every_kind_is_in_the_table() -> None:
    assert {name.partition(":")[0] for name in TABLE} == {kind.name for kind in GENERAL}
    assert {kind.example for kind in GENERAL if ":" not in kind.example} <= set(TABLE)
