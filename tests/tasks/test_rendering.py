"""Widths of slots: in tokens, with room for what a task's requirements can ask for."""

from __future__ import annotations

from itertools import islice

import pytest

from dynatok_online.prompt import Encoder, Placement
from dynatok_online.requirements import family
from dynatok_online.tasks.rendering import ROOM, border_notes, renderer_of
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.tiny import sampling, tokenizer, world
from tests.prompt.tokenizers import build

TASK = Task("t", "style: {{s}}\nText:\n", {"s": SlotState("lower case", "lower")})
ENCODER = Encoder.of(build("gpt2"))


def lengths(task: Task, texts: list[str], slot_width: int = 0) -> set[int]:
    renderer = renderer_of(task, ENCODER, fixed_width=True, slot_width=slot_width)
    return {
        len(renderer.pieces[i])
        for text in texts
        for i, slot in zip(renderer.layout({"s": text}), renderer.slots, strict=True)
        if slot == "s"
    }


def test_every_state_of_a_requirements_family_fits_and_takes_the_same_tokens() -> None:
    texts = [one.text for one in family("case")]
    assert "UPPER CASE" in texts
    (width,) = lengths(TASK, [*texts, "all in UPPER"])
    longest = max(renderer_of(TASK, ENCODER).length("s", text) for text in texts)
    assert width == longest + ROOM


def test_a_state_without_a_requirement_has_room_too() -> None:
    plain = Task("t", "style: {{s}}", {"s": SlotState("upper")}, (), 9)
    own = renderer_of(plain, ENCODER).length("s", "upper")
    assert lengths(plain, ["upper", "lower"]) == {own + ROOM}


def test_a_task_or_a_page_may_say_how_wide() -> None:
    known = renderer_of(TASK, ENCODER).length("s", "lower case")
    wide = Task("t", TASK.template, TASK.states, widths={"s": known + 1})
    assert lengths(wide, ["lower case"]) == {known + 1}
    assert lengths(TASK, ["lower case"], slot_width=30) == {30}
    narrow = Task("t", TASK.template, TASK.states, widths={"s": 1})
    assert lengths(narrow, ["lower case"]) == {known}
    with pytest.raises(ValueError, match=f"slot 's' is {known} tokens wide, but"):
        lengths(narrow, ["lower case, and then some more"])
    with pytest.raises(ValueError, match="width of 'x' is not among its slots"):
        Task("t", TASK.template, TASK.states, widths={"x": 3})


def test_edits_and_rules_count_as_known_states() -> None:
    long = SlotState("every single word in upper case letters, please")
    edited = Task("t", TASK.template, TASK.states, (ScheduledEdit(3, "s", long),), widths={"s": 1})
    assert lengths(edited, ["lower case"]) == {renderer_of(TASK, ENCODER).length("s", long.text)}


def test_slots_of_the_tiny_world_are_as_wide_as_it_was_trained_on() -> None:
    task = next(world.tasks())
    characters = Encoder(lambda text: [ord(c) for c in text])
    renderer = renderer_of(task, characters, fixed_width=True)
    plain = renderer_of(task, characters)
    texts = {name: state.text for name, state in task.states.items()}
    assert renderer.layout(texts) == plain.layout(texts)
    assert [p.tolist() for p in renderer.pieces] == [p.tolist() for p in plain.pieces]


def test_borders_that_do_not_agree_are_told_in_every_state_of_the_task() -> None:
    assert border_notes(TASK, ENCODER) == []
    joining = Encoder.of(build("llama3"))
    assert border_notes(TASK, joining) == []
    assert border_notes(TASK, joining, "late") == [
        "{{response}} before '\\nstyle: ': cut where the response ends"
    ]
    edits = (ScheduledEdit(3, "t", SlotState("per")),)
    touching = Task("t", "say {{s}}{{t}}", {"s": SlotState("up"), "t": SlotState(" -")}, edits)
    assert border_notes(touching, ENCODER) == [
        "{{s}} and {{t}} touch: cut between them",
        "' up' | 'per': cut here, where the tokenizer would join",
    ]


@pytest.mark.parametrize("placement", ["head", "late"])
@pytest.mark.parametrize("fixed_width", [False, True])
def test_the_tiny_models_prompts_are_what_they_always_were(
    placement: Placement, fixed_width: bool
) -> None:
    """Its tokenizer and a plain function say the same: one character, one token."""
    own = Encoder.of(tokenizer.build())
    for task in islice(world.tasks(seed=3), 5):
        made = []
        for encode in (own, sampling.encode):
            renderer = renderer_of(task, encode, placement=placement, fixed_width=fixed_width)
            for at in (0, *(edit.index for edit in task.edits)):
                states = {name: state.text for name, state in task.states_at(at).items()}
                layout = renderer.layout(states)
                made.append([[] if i < 0 else renderer.pieces[i].tolist() for i in layout])
                text = "".join(sampling.decode(one) for one in made[-1])
                assert placement == "late" or text == task.render(task.states_at(at))
        assert made[: len(made) // 2] == made[len(made) // 2 :]
