"""Fixed slot widths, seeded and disjoint splits, edits that change something and fit."""

from itertools import islice, pairwise

import pytest

from dynatok_online.requirements import family, requirement
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import tokenizer, world


def take(split: world.Split, seed: int = 0, count: int = 200) -> list[Task]:
    return list(islice(world.tasks(split, seed=seed), count))


def test_slots_have_one_width() -> None:
    for slot in world.SLOTS:
        for item in family(slot):
            state = world.slot_state(item.name)
            assert len(state.text) == world.SLOT_WIDTH
            assert state.text.strip() == item.text
            assert state.requirement == item.name


def test_a_text_too_wide_for_its_slot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SLOT_WIDTH", 5)
    with pytest.raises(ValueError, match=r"10 characters; a slot of the tiny world holds 5"):
        world.slot_state("upper")


def test_no_edit_moves_a_position_and_the_prefix_is_two_blocks_long() -> None:
    for task in take("train"):
        first = task.render(task.states)
        assert set(first) <= set(tokenizer.CHARACTERS)
        start = task.template.index("{{case}}")
        assert start >= 64
        for edit in task.edits:
            text = task.render(task.states_at(edit.index))
            assert len(text) == len(first)
            assert text[:start] == first[:start]


def test_edits_change_their_slot_and_leave_room() -> None:
    counts = set()
    for task in take("heldout"):
        counts.add(len(task.edits))
        bounds = [0, *(edit.index for edit in task.edits), task.max_tokens]
        assert all(b - a >= world.GAP for a, b in pairwise(bounds))
        for edit in task.edits:
            assert task.states_at(edit.index - 1)[edit.slot] != edit.state
            assert edit.state.requirement is not None
            assert requirement(edit.state.requirement).family == edit.slot
    assert counts == {1, 2, 3}


def test_tasks_are_seeded() -> None:
    assert take("train", 1) == take("train", 1)
    assert take("train", 1) != take("train", 2)
    longer = next(world.tasks("train", seed=1, max_tokens=200, edits=(4, 4)))
    assert longer.max_tokens == 200
    assert len(longer.edits) == 4


def test_splits_share_nothing() -> None:
    train, heldout = take("train"), take("heldout")
    assert not {t.template for t in train} & {t.template for t in heldout}
    assert not set(world.NAMES["train"]) & set(world.NAMES["heldout"])
    assert not set(world.TOWNS["train"]) & set(world.TOWNS["heldout"])
    assert not {t.seed for t in train} & {t.seed for t in heldout}
    ids = [t.task_id for t in (*train, *heldout, *take("train", 1))]
    assert len(set(ids)) == len(ids)


def test_too_many_edits_are_refused() -> None:
    with pytest.raises(ValueError, match="write at most 4 edits or a longer response"):
        next(world.tasks(edits=(9, 9)))
