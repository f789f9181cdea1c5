"""The writing tasks: topics apart, states that fit each other, rows that the task reader takes."""

from __future__ import annotations

import random

from dynatok_online.requirements.rewrites import can_rewrite
from dynatok_online.tasks import writing
from dynatok_online.tasks.files import make_task, read_row, split_of


def test_there_are_enough_topics_and_held_out_ones_are_apart() -> None:
    train, heldout = set(writing.TRAIN_TOPICS), set(writing.HELDOUT_TOPICS)
    assert len(train) >= 80
    assert len(heldout) >= 20
    assert not train & heldout


def test_at_least_eight_requirements_that_a_program_can_rewrite_for() -> None:
    names = [str(one.requirement) for states in writing.LEARNED.values() for one in states]
    assert len(set(names)) >= 8
    names += [str(one.requirement) for states in writing.STATES.values() for one in states]
    assert all(map(can_rewrite, names))


def test_rows_become_tasks_of_their_split() -> None:
    def chat(messages: list[dict[str, str]]) -> str:
        return messages[0]["content"] + "\n"

    for raw in writing.ROWS:
        row = read_row(raw)
        one = make_task(row, seed=1, chat=chat)
        assert one.edits
        assert split_of(row) == row.split
        assert set(one.widths.values()) == {writing.WIDTH}


def test_tasks_begin_in_every_state() -> None:
    for split in ("train", "heldout"):
        rows = [read_row(raw) for raw in (*writing.ROWS, *writing.WORD_ROWS)]
        begun = {
            (slot, make_task(row, seed=1, chat=lambda m: m[0]["content"]).states[slot].requirement)
            for row in rows
            if split_of(row) == split
            for slot in row.slots
        }
        known = {**writing.LEARNED, "word": writing.WORDS["word"]}
        assert begun == {(slot, one.requirement) for slot in known for one in known[slot]}


def test_words_are_asked_for_on_the_same_topics_and_are_nowhere_else() -> None:
    seen = {one.requirement for states in writing.STATES.values() for one in states}
    words = {one.requirement for one in writing.WORDS["word"]}
    assert len(words) == 8
    assert not words & seen
    for raw in writing.WORD_ROWS:
        one = make_task(read_row(raw), seed=1, chat=lambda m: m[0]["content"] + "\n")
        assert {edit.state.requirement for edit in one.edits} <= words | seen
        assert min(edit.index for edit in one.edits) >= 24
    assert {split_of(read_row(raw)) for raw in writing.WORD_ROWS} == {"train", "heldout"}


def test_drawn_edits_lie_inside_the_response_on_common_steps() -> None:
    templates = {slots: "".join(map(writing.LINES.get, slots)) for slots in writing.SLOTS}  # type: ignore[arg-type]
    for seed in range(200):
        one = writing.drawn_task(random.Random(seed), "t", templates)
        indices = [edit.index for edit in one.edits]
        assert len(set(indices)) == len(indices)
        assert all(at % 8 == 0 for at in indices)
        assert min(indices) >= 24
        assert max(indices) <= one.max_tokens * 3 // 4
