"""What a page may name."""

import json
import sys

import pytest

from actor.demo.messages import Edit, Start, decode

OWN = "this.rules:haiku"  # importing `this` would print a poem


def message(kind: str, requirement: str) -> str:
    slots = {"case": {"text": "x", "requirement": requirement}}
    return json.dumps(
        {"type": kind, "slots": slots} | ({"template": "t"} if kind == "start" else {})
    )


@pytest.mark.parametrize("kind", ["start", "edit"])
@pytest.mark.parametrize("name", [OWN, f"upper+{OWN}", "os:system"])
def test_a_page_names_no_code(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match="would be code of this machine"):
        decode(message(kind, name))
    assert "this" not in sys.modules


@pytest.mark.parametrize(("kind", "made"), [("start", Start), ("edit", Edit)])
def test_what_the_page_was_offered_it_may_send_back(kind: str, made: type) -> None:
    assert isinstance(decode(message(kind, OWN), {OWN, None}), made)
    assert isinstance(decode(message(kind, "max_words:3")), made)


def test_lanes_are_policies() -> None:
    def start(*lanes: str) -> str:
        return json.dumps({"type": "start", "template": "t", "slots": {}, "lanes": lanes})

    four = ("exact", "sticky", "refresh:64", "none")
    made = decode(start(*four))
    assert isinstance(made, Start)
    assert made.lanes == four
    with pytest.raises(ValueError, match="lanes is 'refresh:x'; write exact"):
        decode(start("refresh:x"))
    with pytest.raises(ValueError, match="length <= 4"):
        decode(start(*four, "refresh:8"))
