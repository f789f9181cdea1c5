"""The arms of the experiment: what each counts, and that the equal ones are equal."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import adherence
from benchmarks._adherence_arms import ARMS, insertions, removed_corrections, without_edits
from benchmarks._adherence_measures import gold
from benchmarks._adherence_report import write_report
from benchmarks._adherence_tables import spikes, time_to_level
from dynatok_online import attention
from dynatok_online.tiny import model_path, world
from dynatok_online.tiny.sampling import decode


def batch(name: str, count: int = 3) -> Any:
    tasks = islice(world.tasks("train", seed=5, edits=(2, 2)), count)
    return [ARMS[name].prepare(task, random.Random(task.seed)) for task in tasks]


@pytest.mark.parametrize("name", sorted(ARMS))
def test_weights_sum_to_one_whatever_the_divisor(name: str) -> None:
    rows, count = ARMS[name].rows(batch(name))
    weights = np.concatenate([row.weights for row in rows])
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert (weights > 0).sum() == count
    if not ARMS[name].one_state:
        assert count == 3 * world.RESPONSE_LENGTH


def test_one_state_per_visit_counts_its_own_tokens_alone() -> None:
    for whole, (part, owner) in zip(batch("d_exact"), batch("b_one_state"), strict=True):
        (k,) = set(owner[owner >= 0].tolist())
        one = whole[0].passes[k]
        assert np.flatnonzero(owner >= 0).tolist() == list(range(one.start, one.stop))
        assert part.passes[0].states == one.states
        assert part.response.tolist() == whole[0].response.tolist()


def test_exact_methods_have_one_loss_and_sticky_another() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path())
    attention.prepare(model, "concat")
    found = {}
    names = ("d_exact", "c_truncated", "b_all_states_tokens", "g_sticky")
    for name in names:
        model.zero_grad()
        rows, _ = ARMS[name].rows(batch(name))
        nll = adherence.backward(model, rows)
        found[name] = (nll, model.model.embed_tokens.weight.grad.clone())
    for name in names[1:3]:
        assert found[name][0] == pytest.approx(found["d_exact"][0], rel=1e-5)
        torch.testing.assert_close(found[name][1], found["d_exact"][1], rtol=1e-3, atol=1e-6)
    assert abs(found["g_sticky"][0] - found["d_exact"][0]) > 1e-4


def test_corrections_are_put_in_and_taken_out() -> None:
    (task,) = islice(world.tasks("train", seed=5, edits=(2, 2)), 1)
    (one, owner) = ARMS["h_appended"].prepare(task, random.Random(0))
    text = decode(one.response.tolist())
    for index, inserted in insertions(task).items():
        assert text[index : index + len(inserted)] == inserted
        assert set(owner[index : index + len(inserted)].tolist()) == {-1}
    assert removed_corrections(task, text) == world.gold_response(task)
    assert (owner >= 0).sum() == task.max_tokens
    assert len(one.response) == without_edits(task).max_tokens


def test_gold_texts_are_measured_as_perfect() -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path())
    attention.prepare(base, "concat")
    found = gold(base, list(islice(world.tasks("heldout", seed=1), 12)))
    assert found["adherence_after_edit"] == found["known_words"] == 1.0
    assert found["never"] == 0
    assert 0 < found["latency"] < 20


def test_time_to_a_level_is_read_off_the_curve() -> None:
    points = [(5.0, 0.7), (10.0, 0.8), (15.0, 1.0)]
    result = {"curve": [{"seconds": s, "adherence": a} for s, a in points]}
    assert time_to_level(result) == pytest.approx(12.5)
    assert time_to_level(result, 0.6) == 5.0
    assert time_to_level(result, 1.1) is None


def test_spikes() -> None:
    assert spikes([1.0] * 12) == 0
    assert spikes([1.0] * 10 + [1.6, 1.0]) == 1


def test_the_report_is_made_from_raw_results_alone(tmp_path: Path) -> None:
    measures = {
        "adherence_after_edit": 0.9,
        "adherence_static": 1.0,
        "adherence_kept": 1.0,
        "latency": 9.0,
        "never": 0.1,
        "nll_under_base": 0.4,
        "repetition": 0.0,
        "known_words": 1.0,
        "computed_per_token": 2.0,
        "extra_tokens_per_edit": 20.0,
        "seconds": 3.0,
        "loss_tokens": 10,
        "tokens": 20,
        "step": 2,
    }
    shared = {
        "settings": {"model": "tiny", "seconds": 3.0, "loss_tokens": 10, "tasks": 4},
        "machine": {"cpu": "a cpu", "torch": "2", "transformers": "5", "date": "2026-01-01"},
        "curve": [{"seconds": 3.0, "adherence": 0.95}],
        "nll": [1.0] * 12,
        "grad_norm": [1.0] * 12,
        "at_seconds": measures,
        "at_loss_tokens": measures,
    }
    lines = [{"arm": name, "seed": seed, **shared} for name in ARMS for seed in (0, 1)]
    lines.append({**shared, "arm": "a_base", "seed": 0, "exact": measures, "sticky": measures})
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(one) + "\n" for one in lines))
    arguments = ["--report-only", "--raw", str(raw), "--report", str(tmp_path / "out.md")]
    assert adherence.main(arguments) == 0
    text = (tmp_path / "out.md").read_text()
    assert "| (d) packed, exact | 0.900 | 0.900 |" in text
    assert "(g) reaches at least 0.95" in text
    assert (tmp_path / "out.png").exists()
    with pytest.raises(SystemExit, match="no raw results yet"):
        write_report([], tmp_path / "none.md")
