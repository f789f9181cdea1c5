"""Gold responses measured beside a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actor.offline.config import EvalConfig
from actor.offline.eval_gold import gold_report
from actor.offline.eval_report import markdown

STATES = {"case": "upper"}, {"case": "lower"}
ROW = {
    "prompt": "Letters: {{case}}\nText: ",
    "slots": {"case": ["upper", "lower"]},
    "response": [
        {"text": "THE SEA IS WIDE. ", "states": STATES[0]},
        {"text": "the hill is high. The end.", "states": STATES[1]},
    ],
}


def measured(tmp_path: Path, *rows: object) -> EvalConfig:
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(gold=str(path))


def test_gold_is_judged_as_a_models_responses_are(tmp_path: Path) -> None:
    config = measured(tmp_path, ROW, ROW)
    report = gold_report(config)
    mean = report["mean"]
    assert mean["edits_judged"] == {"all": 2, "by_requirement": {"lower": 2, "upper": 0}}
    assert mean["all"]["adherence_static"]["mean"] == 1.0
    assert mean["all"]["adherence_after_edit"]["mean"] == pytest.approx(5 / 6)  # `The`
    assert mean["all"]["repetition"]["mean"] == 0
    assert "computed_per_token" not in mean["all"]
    text = markdown(config, {"exact": report, "gold": report})
    assert "| measure | exact | gold |" in text
    assert "## By requirement, gold" in text


def test_a_file_that_holds_no_gold_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no gold response"):
        gold_report(measured(tmp_path))
    with pytest.raises(ValueError, match="line 2: the gold response is empty"):
        gold_report(measured(tmp_path, ROW, ROW | {"response": ""}))
