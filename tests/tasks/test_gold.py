"""Offline data: trajectories as they are, gold responses as passes, and what is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dynatok_online.prompt import Encoder, chat_of
from dynatok_online.tasks.files import read_row
from dynatok_online.tasks.gold import gold, load_training_data
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.trajectory import Earlier, Trajectory, to_row
from tests.prompt.test_chat_templates import FAMILIES, family
from tests.prompt.tokenizers import build
from tests.simulate import simulate

GOLD = {
    "prompt": "In {{case}}: ",
    "slots": {"case": [{"text": "UPPER"}, {"text": "lower"}]},
    "edits": [{"at": 4, "slot": "case", "to": {"text": "lower"}}],
    "response": "OWLSowls",
}


def load(tmp_path: Path, *rows: Any, **more: Any) -> list[Trajectory]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return load_training_data(
        path, encode=lambda text: [ord(c) for c in text], chat=lambda: lambda messages: "", **more
    )


def test_gold_is_judged_where_somebody_asks(tmp_path: Path) -> None:
    """Half of what was written under `upper` obeys `lower` already."""
    states = [{"text": "UPPER", "requirement": "upper"}, {"text": "lower", "requirement": "lower"}]
    edits = [{"at": 12, "slot": "case", "to": states[1]}]
    row = {**GOLD, "slots": {"case": states}, "edits": edits, "response": "OWLS. owls. owls"}
    (plain,) = load(tmp_path, row)
    assert plain.passes[1].earlier is msgspec.UNSET
    (judged,) = load(tmp_path, row, judge=lambda ids: "".join(map(chr, ids)))
    assert [one.earlier for one in judged.passes] == [
        (),
        (Earlier(0, 5, 0.0), Earlier(5, 11, 1.0)),
    ]
    assert judged.passes[1].scores == {}, "gold says nothing of itself"


def test_trajectories_and_gold_responses(tmp_path: Path) -> None:
    recorded = simulate(np.random.default_rng(0), name="recorded")
    first, gold = load(tmp_path, to_row(recorded), GOLD, reuse="sticky", block_size=2)
    assert to_row(first) == to_row(recorded)
    assert [(one.start, one.stop, one.states["case"]) for one in gold.passes] == [
        (0, 4, "UPPER"),
        (4, 8, "lower"),
    ]
    assert (gold.policy, gold.block_size) == ("sticky", 2)
    assert "".join(map(chr, gold.response)) == "OWLSowls"


def test_gold_responses_may_stand_for_both_policies_in_turn(tmp_path: Path) -> None:
    found = load(tmp_path, GOLD, GOLD, GOLD, reuse="both")
    assert [one.policy for one in found] == ["exact", "sticky", "exact"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "line 2: is neither a trajectory"),
        ({"trajectory_id": "x", "pieces": [], "response": []}, "trajectory x has no 'passes'"),
        (GOLD | {"response": ""}, "line 2: the gold response is empty"),
        (GOLD | {"slots": {}}, "line 2: slot {{case}} stands in the text"),
        (
            {**GOLD, "edits": [], "schedule": {"rule": "after_sentences"}},
            "needs edits at known tokens",
        ),
    ],
)
def test_what_cannot_be_used_is_named_or_left_out(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, GOLD, row)
    assert message in str(error.value)
    bad: list[str] = []
    assert len(load(tmp_path, GOLD, row, GOLD, on_bad=bad.append)) == 2
    assert len(bad) == 1
    assert message in bad[0]


SEGMENTS = {
    "prompt": "In {{case}}: ",
    "slots": {"case": ["upper", "lower"]},
    "response": [
        {"text": "THE SEA. ", "states": {"case": "upper"}},
        {"text": "the hill is", "states": {"case": "lower"}},
        {"text": " green."},
    ],
}


def test_gold_text_ends_with_the_stop_token_unless_it_says_otherwise() -> None:
    tokenizer = build("gpt2")
    encoder = Encoder.of(tokenizer)
    row = {"prompt": "Text:\n", "response": "The sea."}
    task, tokens, stopped = gold(read_row(row), encoder)
    assert stopped
    assert tokens == [*tokenizer.encode("The sea."), tokenizer.eos_token_id]
    assert task.max_tokens >= len(tokens)
    _, tokens, stopped = gold(read_row(row | {"stop": False}), encoder)
    assert not stopped
    assert tokens == tokenizer.encode("The sea.")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gold_answer_is_what_the_chat_template_itself_would_train_on(name: str) -> None:
    tokenizer = family(name)
    messages = [{"role": "user", "content": "Write a note in {{case}}."}]
    row = {"messages": messages, "slots": {"case": ["upper", "lower"]}, "response": "THE SEA."}
    encoder = Encoder.of(tokenizer)
    task, tokens, _ = gold(read_row(row), encoder, chat=chat_of(tokenizer, name))
    assert tokens[-1] == tokenizer.convert_tokens_to_ids(FAMILIES[name][1])
    whole = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Write a note in UPPER CASE."},
            {"role": "assistant", "content": "THE SEA."},
        ],
        tokenize=False,
        # Qwen3 puts an empty thought before an answer that it is given; ours is generated after it.
    ).replace("<think>\n\n</think>\n\n", "")
    one = load_one(task, tokens, encoder)
    fed = [*one.fed(0).tolist(), *one.response.tolist()]
    own = tokenizer.encode(whole, add_special_tokens=False)
    assert own[: len(fed)] == fed


def load_one(task: Any, tokens: list[int], encoder: Encoder) -> Trajectory:
    return scripted_trajectory(task, tokens, encoder, stopped=True)


def test_segments_are_cut_where_their_edits_are() -> None:
    tokenizer = build("gpt2")
    task, tokens, _ = gold(read_row(SEGMENTS), Encoder.of(tokenizer))
    assert tokens[:-1] == tokenizer.encode(" THE SEA. the hill is green.")
    assert [(e.slot, e.state.requirement) for e in task.edits] == [("case", "lower")]
    (edit,) = task.edits
    assert tokenizer.decode(tokens[: edit.index]) == " THE SEA."
    assert task.states["case"].requirement == "upper"
    swapped = {**SEGMENTS, "slots": {"case": ["lower", "upper"]}}
    assert gold(read_row(swapped), Encoder.of(tokenizer))[0].states == task.states


def test_a_gold_response_may_hold_control_tokens_if_it_says_so() -> None:
    tokenizer = family("qwen3")
    encoder = Encoder.of(tokenizer)
    row = {
        "messages": [{"role": "user", "content": "hi"}],
        "response": "<think>\nwell</think>\n\nThe sea.",
    }
    thought = set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    chat = chat_of(tokenizer, "qwen3")
    _, plain, _ = gold(read_row(row), encoder, chat=chat)
    assert not thought & set(plain)
    _, meant, _ = gold(read_row(row | {"control_tokens": True}), encoder, chat=chat)
    assert meant[:-1] == tokenizer.encode(row["response"])
    assert thought <= set(meant)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": []}, "the gold response is empty"),
        ({"edits": GOLD["edits"]}, "or segments with states"),
        (
            {"response": [*SEGMENTS["response"], {"text": "", "states": {}}]},
            "segment 4 of the gold response has no token",
        ),
        (
            {"response": [{"text": "a"}, {"text": " b", "states": {"tone": {"text": "x"}}}]},
            "edit of 'tone' is not among its slots",
        ),
        ({"response": [{"text": "a", "states": {"case": "uper"}}]}, "did you mean 'upper'"),
        ({"response": [{"txt": "a"}]}, "txt"),
    ],
)
def test_wrong_segments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        gold(read_row(SEGMENTS | change), Encoder.of(build("gpt2")))
    assert message in str(error.value)


def test_gold_for_late_slots_stands_before_them(tmp_path: Path) -> None:
    (late,) = load(tmp_path, GOLD, placement="late")
    assert "".join(map(chr, late.fed(1))) == "In : OWLSlower"
