"""Templates, slots and piecewise rendering."""

import pytest

from dynatok_online.prompt import Renderer, Response, Slot, Text, parse
from dynatok_online.trajectory import RESPONSE


def codepoints(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_response_stands_at_the_end_unless_placed():
    assert parse("Write {{case}}: ").parts == (
        Text("Write "),
        Slot("case"),
        Text(": "),
        Response(),
    )
    assert parse("A {{ response }} {{late}}").parts == (
        Text("A "),
        Response(),
        Text(" "),
        Slot("late"),
    )


def test_slots_are_named_once_in_order():
    assert parse("{{b}}{{a}}{{b}}").slots == ("b", "a")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{response}} {{response}}", "2 {{response}} places"),
        ("open {{case", "'{{' at character 5"),
        ("close case}}", "'}}' at character 10"),
        ("bad {{a b}}", "'{{' at character 4"),
    ],
)
def test_a_wrong_template_says_where(template, message):
    with pytest.raises(ValueError) as error:
        parse(template)
    assert message in str(error.value)


def test_an_edit_changes_only_its_own_piece():
    renderer = Renderer(parse("Write. {{case}}: {{response}}!{{late}}"), codepoints)
    first = renderer.layout({"case": "UPPER", "late": ""})
    second = renderer.layout({"case": "lower", "late": ""})
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, *[True] * 4]
    assert first[3] == RESPONSE
    assert renderer.layout({"case": "UPPER", "late": ""}) == first
    assert len(renderer.pieces) == 6
    assert renderer.pieces[first[5]].tolist() == []


def test_states_must_fit_the_slots():
    renderer = Renderer(parse("{{case}}"), codepoints)
    with pytest.raises(ValueError, match=r"no state for slot \['case'\]"):
        renderer.layout({})
    with pytest.raises(ValueError, match=r"no slot for state \['cse'\]"):
        renderer.layout({"case": "a", "cse": "b"})
