"""The objectives experiment on a chat model: overlooked edits, and a run of two arms."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path

import pytest

from benchmarks import _real_data, objectives
from benchmarks._objectives_arms import CHAT
from benchmarks._objectives_overlooked import overlooked
from dynatok_online.requirements import requirement
from dynatok_online.tasks.files import read_row, state_of
from dynatok_online.tasks.task import SlotState
from tests.benchmarks.chat import gold_rows, save_model


def test_a_writer_who_overlooks_edits_goes_on_as_before() -> None:
    rows = [read_row(one) for one in gold_rows("train", 60)]
    missed = edits = 0
    for number, row in enumerate(rows):
        found, here, of = overlooked(row, random.Random(number), 0.2)
        missed, edits = missed + here, edits + of
        assert isinstance(found.response, list)
        assert isinstance(row.response, list)
        if not here:
            assert found == row
            continue
        texts = [one.text for one in found.response]
        live: dict[str, SlotState] = {}
        failed = 0
        for k, segment in enumerate(found.response):
            live |= {slot: state_of(one) for slot, one in segment.states.items()}
            for slot in segment.states:
                verdict = requirement(str(live[slot].requirement)).verify(
                    texts[k], before="".join(texts[:k]), after="".join(texts[k + 1 :])
                )
                failed += k > 0 and verdict.holds is False
        assert failed == here, texts
    assert edits == 120
    assert 0.1 < missed / edits < 0.3
    assert overlooked(rows[0], random.Random(0), 0.0) == (rows[0], 0, 2)


def test_all_edits_overlooked_leave_the_first_states() -> None:
    for row in (read_row(one) for one in gold_rows("train", 20)):
        found, missed, edits = overlooked(row, random.Random(1), 1.0)
        if missed < edits:
            continue
        assert isinstance(found.response, list)
        texts = [one.text for one in found.response]
        starts = [0, *accumulate(map(len, texts))]
        whole = "".join(texts)
        for slot, given in found.response[0].states.items():
            wanted = requirement(str(state_of(given).requirement))
            for k, text in enumerate(texts):
                verdict = wanted.verify(
                    text, before=whole[: starts[k]], after=whole[starts[k + 1] :]
                )
                assert verdict.holds is not False, (slot, text)


def test_arms_of_a_chat_model() -> None:
    order = [one.key if one else "base" for one, _ in objectives.planned(None, [0], chat=True)]
    assert order == [*CHAT, "base"]
    ((arm, seed),) = objectives.planned(["gold/key"], [4], chat=True)
    assert arm is not None
    assert (arm.key, seed) == ("gold/key", 4)
    with pytest.raises(SystemExit, match="there is no arm 'policy/sft'; use corrupted/sft"):
        objectives.planned(["policy/sft"], [0], chat=True)


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(tmp_path / "none"), "--raw", str(tmp_path / "raw.jsonl")]
    assert objectives.main([*asked, "--report", str(tmp_path / "page.md")]) == 2
    assert "none" in capsys.readouterr().err


def test_it_trains_measures_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold, raw, page = (tmp_path / name for name in ("gold.jsonl", "raw.jsonl", "page.md"))
    _real_data.write_gold(gold, [*gold_rows("train", 8), *gold_rows("heldout", 2)])
    folder = tmp_path / "model"
    asked = [
        *("--model", str(save_model(folder)), "--raw", str(raw), "--report", str(page)),
        *("--gold", str(gold), "--seeds", "0", "--loss-tokens", "1500", "--tasks", "6"),
        *("--arms", "corrupted/sft", "corrupted/context", "corrupted/context, shuffled", "base"),
    ]
    assert objectives.main(asked) == 0
    lines = objectives.read_results(tmp_path / "raw-chat.jsonl")
    assert [one["arm"] for one in lines] == [asked[-4], asked[-3], asked[-2], "base"]
    for one in lines:
        found = one["at_loss_tokens"]
        assert "at_seconds" not in one
        assert found["logprob_gap"]["most"] < 1e-3
        assert (found["drift"] == 0) == (one["arm"] == "base")
        assert "distinct_valid" in found
        if one["arm"] != "base":
            assert 1500 <= found["loss_tokens"] < 2400
    text = page.read_text()
    assert f"## A chat model: {folder}" in text
    assert "`corrupted/context`: **undecided**. Against none" in text
    assert "Not run yet: `gold/sft`" in text
    capsys.readouterr()
    assert objectives.main(asked) == 0  # everything is there: nothing runs again
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["chat_results"] == 4
    assert len(objectives.read_results(tmp_path / "raw-chat.jsonl")) == 4
    assert not raw.exists()
