"""The objectives experiment: its data, its control, its rules, and that it goes on where it was."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import objectives
from benchmarks._objectives_arms import CREDIT, arms, gold_batches, shuffled_within
from benchmarks._objectives_report import write_report
from benchmarks._objectives_select import Method, again, chosen, pooled
from benchmarks._objectives_verdicts import credit, headlines, paired, too_early
from dynatok_online.adherence.stretches import edited_scores


def result(arm: str, seed: int, adherence: float, drift: float = 0.01) -> dict[str, Any]:
    measures = {
        "adherence_after_edit": adherence,
        "adherence_static": 0.97,
        "adherence_kept": 0.9,
        "drift": drift,
        "step": 19,
    }
    return {
        "arm": arm,
        "seed": seed,
        "objective": "sft",
        "at_loss_tokens": {**measures, "valid": 0.5, "unique": 1.0, "distinct_valid": 0.5},
        "at_seconds": measures,
        "settings": {"model": "tiny", "seconds": 20.0, "loss_tokens": 24000, "tasks": 96},
        "machine": {"cpu": "c", "torch": "t", "transformers": "f", "date": "2026-01-01"},
    }


def results(gain: float, over_random: float, seeds: int = 10) -> list[dict[str, Any]]:
    """So many seeds of what decides about `context` on gold."""
    out = []
    for seed in range(seeds):
        noise = 0.002 * (seed % 3)
        out += [
            result("gold/sft", seed, 0.8 + noise),
            result("gold/context", seed, 0.8 + gain + 0.5 * noise),
            result("gold/context, shuffled", seed, 0.8 + gain - over_random + noise),
        ]
    return out


@pytest.mark.parametrize(
    ("gain", "over_random", "verdict"),
    [
        (0.05, 0.05, "works"),
        (0.02, 0.05, "does not work"),
        (0.05, 0.01, "does not work"),
        (-0.05, 0.05, "does not work"),
    ],
)
def test_the_rule_about_credit(gain: float, over_random: float, verdict: str) -> None:
    found = results(gain, over_random)
    one = paired(found, "gold/context", "gold/sft", "at_loss_tokens", "adherence_after_edit")
    assert one is not None
    assert one.mean == pytest.approx(gain - 0.0009)
    assert credit(found)[0].startswith(f"- `gold/context`: **{verdict}**.")
    fewer = credit(results(gain, over_random, 3))[0]
    so_far = "works" if verdict == "works" else "not shown to work"
    assert fewer.startswith(f"- `gold/context`: **{so_far} by 3 of 10 seeds**.")
    assert "undecided" in credit(found)[1]
    assert "not run yet" in credit(found)[1]


def test_a_large_gain_in_one_seed_alone_is_none() -> None:
    found = results(0.0, 0.0)
    for one in found:
        if one["arm"] == "gold/context" and one["seed"] == 0:
            one["at_loss_tokens"]["adherence_after_edit"] += 0.3
    assert "does not work" in credit(found)[0]


@pytest.mark.parametrize(("gain", "early"), [(0.0, True), (0.3, False)])
def test_it_is_said_where_plain_fine_tuning_has_learned_nothing(gain: float, early: bool) -> None:
    results = [
        result(arm, seed, 0.5 + 0.01 * seed + more)
        for seed in range(3)
        for arm, more in (("base", 0.0), ("gold/sft", gain + 0.02 * (seed % 2)))
    ]
    assert bool(too_early(results)) == early
    assert too_early(results[:1]) == []


def test_published_claims() -> None:
    found = [
        result(arm, seed, 0.8, drift + 0.0001 * seed)
        for seed in range(3)
        for arm, drift in (("corrupted/sft", 0.05), ("corrupted/dft", 0.02))
    ]
    lines = headlines(found)
    assert "**yes**" in lines[0]
    assert all("undecided" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("less", "verdict"),
    [([-0.01, 0.0, 0.01], "yes"), ([-0.2, -0.21, -0.2], "no"), ([-0.3, 0.1, -0.1], "not seen")],
)
def test_no_worse_is_by_less_than_a_gain(less: list[float], verdict: str) -> None:
    found = [result("gold/sft", seed, 0.8) for seed in range(3)]
    found += [result("gold/eksft", seed, 0.8 + one) for seed, one in enumerate(less)]
    assert f"no worse than SFT: **{verdict}**" in headlines(found)[3]


def test_corrupted_gold_overlooks_one_edit_in_five() -> None:
    found: dict[str, list[float]] = {}
    for data in ("gold", "corrupted"):
        many = [one for batch in islice(gold_batches(data, 3, 8), 12) for one in batch]
        found[data] = edited_scores(many)
        again = next(gold_batches(data, 3, 8))
        assert [one.response.tolist() for one in again] == [o.response.tolist() for o in many[:8]]
    assert min(found["gold"]) == 1
    wrong = np.mean(np.array(found["corrupted"]) < 0.5)
    assert 0.1 < wrong < 0.3


def test_credit_is_dealt_out_anew_within_a_trajectory() -> None:
    delta = np.array([np.nan, 1.0, 2.0, 3.0, np.nan, 10.0, 20.0])
    trajectory = np.array([0, 0, 0, 0, 1, 1, 1])
    mixed = shuffled_within(delta, trajectory, [1, 2])
    assert np.isnan(mixed[[0, 4]]).all()
    assert sorted(mixed[1:4]) == [1, 2, 3]
    assert sorted(mixed[5:]) == [10, 20]
    assert np.array_equal(mixed, shuffled_within(delta, trajectory, [1, 2]), equal_nan=True)
    many = [shuffled_within(delta, trajectory, [1, i])[1:4].tolist() for i in range(20)]
    assert len({tuple(one) for one in many}) > 3


def test_what_decides_about_credit_runs_first_seed_by_seed() -> None:
    order = [(one.key if one else "base", seed) for one, seed in objectives.planned(None, [0, 1])]
    assert len(set(order)) == len(order)
    assert [seed for _, seed in order] == [0] * (len(order) // 2) + [1] * (len(order) // 2)
    assert {name for name, _ in order[:3]} == set(CREDIT[0])
    assert ("base", 0) in order
    (only,) = objectives.planned(["gold/sft"], [3])
    assert only[0] is not None
    assert (only[0].key, only[1]) == ("gold/sft", 3)
    with pytest.raises(SystemExit, match="there is no arm 'gold/stf'"):
        objectives.planned(["gold/stf"], [0])
    keys = [one.key for one in arms()]
    assert len(set(keys)) == len(keys)


def test_goes_on_where_it_was_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmarks._objectives_train as training

    ran = []

    def run_arm(arm: Any, seed: int, **_: Any) -> dict[str, Any]:
        if seed == 2:
            raise ValueError("no reference")
        ran.append((arm.key, seed))
        one = result(arm.key, seed, 0.8)
        return {name: one[name] for name in ("at_loss_tokens", "at_seconds")}

    monkeypatch.setattr(training, "run_arm", run_arm)
    raw, page = tmp_path / "raw.jsonl", tmp_path / "page.md"
    asked = ["--raw", str(raw), "--report", str(page), "--arms", "gold/sft", "gold/context"]
    assert objectives.main([*asked, "--seeds", "0"]) == 0
    assert objectives.main([*asked, "--seeds", "0", "1"]) == 0
    assert sorted(ran) == [(n, s) for n in ("gold/context", "gold/sft") for s in (0, 1)]
    lines = [json.loads(line) for line in raw.read_text().splitlines()]
    assert {one["settings"]["loss_tokens"] for one in lines} == {24000}
    text = page.read_text()
    assert "2 seeds of every arm" in text
    assert "| context | 2 |" in text
    assert "`gold/context`: **undecided**" in text
    assert "after 20 s of training" in text
    assert "Not run yet: " in text
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == 4
    assert objectives.main([*asked, "--seeds", "2"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"] == 4
    assert said["refused"] == [
        f"{name}, seed 2: no reference" for name in ("gold/sft", "gold/context")
    ]


def test_no_results_no_page(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no raw results"):
        write_report([], tmp_path / "page.md")


@pytest.mark.slow
def test_without_a_point_at_equal_time() -> None:
    from benchmarks._objectives_tiny import TinyWorld
    from benchmarks._objectives_train import run_arm

    (arm,) = [one for one in arms() if one.key == "gold/dft"]
    found = run_arm(arm, 0, world=TinyWorld("tiny", 4), seconds=0.0, loss_tokens=2000)
    assert list(found) == ["at_loss_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gold/context", "gold/context, shuffled", "policy/contrast"])
def test_a_short_run(name: str) -> None:
    from benchmarks._objectives_tiny import TinyWorld
    from benchmarks._objectives_train import run_arm

    (arm,) = [one for one in arms() if one.key == name]
    found = run_arm(arm, 0, world=TinyWorld("tiny", 4), seconds=0.5, loss_tokens=2000)
    assert found["at_loss_tokens"]["loss_tokens"] >= 2000
    assert found["at_seconds"]["seconds"] >= 0.5
    assert 0 <= found["at_loss_tokens"]["adherence_after_edit"] <= 1
    assert found["at_loss_tokens"]["drift"] >= 0
    assert "distinct_valid" in found["at_loss_tokens"]


@pytest.mark.parametrize("method", ["qtuning", "random"])
def test_an_arm_on_a_part_of_the_texts(method: Method) -> None:
    from benchmarks._objectives_tiny import TinyWorld
    from dynatok_online.trajectory import Selected

    pool = pooled(gold_batches("gold", 0, 8), 2000)
    assert 2000 <= sum(len(one.response) for one in pool) < 2000 + 8 * 200
    kept, facts = chosen(method, TinyWorld("tiny", 1).model(), pool, 0)
    assert facts["texts"] == len(pool)
    assert facts["kept"] == len(kept) == round(len(pool) / 4)
    assert all(isinstance(one, Selected) == (method == "qtuning") for one in kept)
    if method == "random":
        assert 0.2 < facts["share_of_tokens"] < 0.3
    else:
        assert 0 < facts["share_of_tokens"] < 0.25
    rounds = [one.trajectory_id for batch in islice(again(kept, 3, 0), 4) for one in batch]
    assert set(rounds[: len(kept)]) == {one.trajectory_id for one in kept}
    known = {one.trajectory_id for one in pool}
    assert set(rounds) <= known


def test_how_much_was_selected_is_said() -> None:
    found = [result(arm, seed, 0.8) for seed in range(3) for arm in ("gold/sft", "gold/qtuning")]
    for one in found:
        if one["arm"] == "gold/qtuning":
            one["selected"] = {"texts": 152, "kept": 38, "share_of_tokens": 0.125}
    (line,) = [one for one in headlines(found) if "`gold/qtuning` less `gold/sft`" in one]
    assert "on all of the gold texts: **yes**" in line
    assert line.endswith("+0.000 ± 0.000 (3 seeds), with 12 % of the tokens.")


def test_more_loss_tokens_are_a_part_of_their_own(tmp_path: Path) -> None:
    shorter = [result(arm, seed, 0.5) for arm in ("base", "gold/sft") for seed in range(3)]
    longer = [result("gold/sft", seed, 0.75) for seed in range(2)]
    for one in longer:
        one["settings"] = one["settings"] | {"loss_tokens": 7}
    write_report([*longer, *shorter], tmp_path / "page.md")
    before, _, after = (tmp_path / "page.md").read_text().partition("after 7 loss tokens\n")
    assert "| sft | 3 | 0.500 ± 0.000 |" in before
    assert "| sft | 2 | 0.750 ± 0.000 |" in after
    assert "| untrained | 3 | 0.500 ± 0.000 |" in after
