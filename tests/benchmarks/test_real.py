"""The experiment on a real model, on a chat model of two layers: arms, resumption, report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import _real_data, _real_report, real
from tests.benchmarks.chat import gold_rows, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_it_trains_measures_resumes_and_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = tmp_path / "real-gold.jsonl"
    _real_data.write_gold(gold, [*gold_rows("train", 6), *gold_rows("heldout", 2)])
    asked = [
        *("--model", str(folder), "--raw", str(tmp_path / "real.jsonl")),
        *("--report", str(tmp_path / "real.md"), "--seeds", "0", "--steps", "2", "--batch", "2"),
        *("--tasks", "3", "--max-tokens", "64", "--note", "On two cores."),
    ]
    arms = ["base", "packed_sticky", "appended"]
    assert real.main([*asked, "--arms", *arms]) == 0
    lines = real.read_results(tmp_path / "real.jsonl")
    assert sorted(one["arm"] for one in lines) == sorted(arms)
    for one in lines:
        if one["arm"] != "base":
            assert len(one["training"]["nll"]) == 2
        for measured in one["modes"].values():
            assert measured.get("logprob_gap", {"most": 0.0})["most"] < 1e-3
    modes = {one["arm"]: set(one["modes"]) for one in lines}
    assert modes["packed_sticky"] == {"exact", "sticky"}
    assert modes["appended"] == {"appended"}
    text = (tmp_path / "real.md").read_text()
    assert "| packed spans, sticky; generated stickily | 1 |" in text
    assert "**Not run yet**: packed spans, exact (seeds 0); one truncated pass" in text
    assert text.count("On two cores.") == 1
    assert "| trained; generated | seeds | difference | told apart |" in text
    capsys.readouterr()
    assert real.main([*asked, "--arms", *arms]) == 0  # everything is there: nothing runs again
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == 3
    assert len(real.read_results(tmp_path / "real.jsonl")) == 3


@pytest.mark.slow
def test_side_by_side_as_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    _real_data.write_gold(gold, [*gold_rows("train", 6), *gold_rows("heldout", 2)])
    found = []
    for jobs in ("1", "2"):
        raw = tmp_path / f"real-{jobs}.jsonl"
        asked = [
            *("--model", str(folder), "--gold", str(gold), "--raw", str(raw), "--jobs", jobs),
            *("--report", str(tmp_path / "real.md"), "--seeds", "0", "1", "--steps", "1"),
            *("--batch", "2", "--tasks", "2", "--max-tokens", "32", "--arms", "truncated"),
        ]
        assert real.main(asked) == 0
        found.append({one["seed"]: one for one in real.read_results(raw)})
    one, two = found
    assert one.keys() == two.keys() == {0, 1}
    for seed in one:
        assert one[seed]["training"]["nll"] == pytest.approx(two[seed]["training"]["nll"])
        assert one[seed]["settings"] == two[seed]["settings"]
        assert one[seed]["modes"]["exact"]["samples"] == two[seed]["modes"]["exact"]["samples"]


def test_an_unknown_arm_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(SystemExit, match="no arm 'packd'; use packed_exact"):
        real.planned(["packd"], [0])


def test_the_most_important_run_first() -> None:
    found = real.planned(None, [0, 1])
    assert found[:3] == [("packed_exact", 0), ("packed_sticky", 0), ("base", 0)]
    assert set(found[3:5]) == {("packed_exact", 1), ("packed_sticky", 1)}
    assert len(found) == len(set(found)) == 14


def test_differences_are_paired_by_seed() -> None:
    def line(arm: str, seed: int, score: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "modes": {"exact": {"after": {"upper": [score]}}}}

    by_arm = {
        "packed_exact": [line("packed_exact", seed, 0.5 + 0.1 * seed) for seed in range(3)],
        "truncated": [line("truncated", seed, 0.4 + 0.1 * seed) for seed in (2, 1)],
        "snapshot_one": [line("snapshot_one", 0, 0.9)],
    }
    assert _real_report._differences(by_arm)[2:] == [
        "| one truncated pass per state; generated exactly | 2 | -0.100 ± 0.000 | yes |",
        "| snapshot masking, one state; generated exactly | 1 | +0.400 | no |",
    ]


def test_steps_to_a_level() -> None:
    falling = [4.0 - 0.1 * step for step in range(40)]
    # The mean of the last three is at 2.15 or below for the first time where they are 2.2 to 2.0.
    assert _real_report.steps_to_level(falling, over=3) == 21
    assert math.isnan(_real_report.steps_to_level([3.0] * 30))
