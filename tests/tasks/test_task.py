"""Tasks: rendering, states over time, and one clear error per mistake."""

import msgspec
import pytest

from dynatok_online.tasks.task import EditRule, ScheduledEdit, SlotState, Task, places_of

UPPER, LOWER = SlotState("UPPER", "upper"), SlotState("lower", "lower")
FREE = SlotState("any  ")


def make(
    template: str = "Write in {{case}}: ",
    states: dict[str, SlotState] | None = None,
    edits: tuple[ScheduledEdit, ...] = (),
    max_tokens: int = 100,
    rules: tuple[EditRule, ...] = (),
) -> Task:
    states = {"case": UPPER} if states is None else states
    return Task("t", template, states, edits, max_tokens, rules=rules)


def test_response_stands_at_the_end_or_in_its_place() -> None:
    assert make().render({"case": LOWER}, "hm") == "Write in lower: hm"
    late = make("Text: {{response}}\nin {{ case }}")
    assert late.render(late.states, "HM {{case}}") == "Text: HM {{case}}\nin UPPER"


def test_states_at() -> None:
    task = make(edits=(ScheduledEdit(10, "case", LOWER), ScheduledEdit(20, "case", FREE)))
    assert [task.states_at(i)["case"] for i in (0, 9, 10, 19, 20, 99)] == [
        UPPER,
        UPPER,
        LOWER,
        LOWER,
        FREE,
        FREE,
    ]
    assert task.states == {"case": UPPER}


def test_round_trip() -> None:
    task = make(edits=(ScheduledEdit(10, "case", LOWER),))
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "{{cas}}"}, "place 'cas' is not among its states; did you mean 'case'"),
        ({"template": "none"}, r"slot 'case' has a state but no place; write \{\{case\}\}"),
        ({"template": "{{case}} {{case}}"}, "stands twice"),
        ({"states": {"case": SlotState("x", "uper")}}, "did you mean 'upper'"),
        ({"template": "{{case}} a }} b"}, r"'}}' at character 11 of the template"),
        ({"template": "{{case}} {{}}"}, r"'{{' at character 9 of the template"),
        ({"template": "{{case}} {{a-b}}"}, r"'{{' at character 9 of the template"),
        ({"template": "{{case}} {{1}}"}, r"'{{' at character 9 of the template"),
        ({"template": "{{case}}{{response}}{{response}}"}, "2 {{response}} places"),
        ({"max_tokens": 0}, "max_tokens is 0; write 1 or more"),
        ({"edits": (ScheduledEdit(5, "cse", LOWER),)}, "did you mean 'case'"),
        ({"edits": (ScheduledEdit(100, "case", LOWER),)}, "index from 1 to 99"),
        ({"edits": (ScheduledEdit(0, "case", LOWER),)}, "index from 1 to 99"),
        (
            {"edits": (ScheduledEdit(9, "case", LOWER), ScheduledEdit(5, "case", UPPER))},
            "order the edits by index",
        ),
        ({"edits": (ScheduledEdit(9, "case", SlotState("x", "uper")),)}, "did you mean 'upper'"),
        ({"rules": (EditRule("cse", LOWER),)}, "rule for 'cse' is not among its slots"),
        ({"rules": (EditRule("case", LOWER, count=0),)}, "a rule's count must be 1 or more"),
        (
            {"rules": (EditRule("case", LOWER),), "edits": (ScheduledEdit(9, "case", LOWER),)},
            "write edits or rules, not both",
        ),
    ],
)
def test_mistakes(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**change)  # type: ignore[arg-type]


def test_requirements_that_contradict_each_other_are_refused_when_they_meet() -> None:
    states = {"a": SlotState("few words", "max_words:20"), "b": FREE}
    meets = ScheduledEdit(30, "b", SlotState("many", "upper+min_words:30"))
    parts = ScheduledEdit(20, "a", FREE)
    with pytest.raises(ValueError, match="from token 30 on slots 'a' and 'b' ask for what no text"):
        make("{{a}} {{b}}", states, (meets,))
    make("{{a}} {{b}}", states, (parts, meets))
    with pytest.raises(ValueError, match="after rule 1 slots 'a' and 'b'"):
        make("{{a}} {{b}}", states, rules=(EditRule("b", meets.state),))


def test_places_of() -> None:
    assert places_of("a {{x}} b {{ y }} {z}") == ["x", "y"]
