"""The pack benchmark: what it feeds each method, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks._edited_response import edited_response
from benchmarks._step_cost import profile
from benchmarks.pack import load, main, measure, run
from dynatok_online.rows.parts import Part
from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.audit import audit


def test_tokens_are_the_theory() -> None:
    static, slot, response, states = 32, 4, 24, 3
    ends = [8, 16, 24]
    for policy, wanted in (
        ("exact", static + sum(slot + end - 1 for end in ends)),
        ("sticky", static + states * slot + response - 1),
    ):
        one = edited_response(policy, static, slot, response, states, vocabulary=100)
        assert audit(one) == []
        assert sum(row.tokens for row in plan_rows([one])) == wanted


@pytest.mark.engine
def test_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(12, 2, 8, 2, rounds=1, planning=False)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found
    assert [row["strategy"] for row in found] == [
        "snapshot",
        "truncated",
        "exact",
        "exact_by_pass",
        "sticky",
        "static",
    ]
    by_name = {row["strategy"]: row for row in found}
    assert by_name["snapshot"]["bound_vs_snapshot"] == 1
    assert by_name["exact"]["bound_vs_snapshot"] > by_name["truncated"]["bound_vs_snapshot"] > 1
    keys = {
        "static", "slot", "response", "states", "strategy", "seconds", "tokens",
        "bound_vs_snapshot", "speedup_vs_snapshot", "bound_vs_truncated",
        "speedup_vs_truncated", "peak_mb",
    }  # fmt: skip
    assert all(keys <= row.keys() for row in found)


def test_a_profile_accounts_for_the_step() -> None:
    one = edited_response("sticky", 12, 2, 8, 2, vocabulary=100)
    parts = [Part(row) for row in plan_rows([one])]
    found = profile(load("small", "cpu", "float32"), parts, repeats=1)
    assert found.keys() == {"linear", "attention", "joining", "other"}
    assert all(ms > 0 for ms in found.values())


@pytest.mark.slow
def test_by_pass_needs_one_snapshot_and_the_kv_of_the_prefix() -> None:
    """Peak memory beyond the weights; `static` is one snapshot pass."""
    static, *_ = shape = (512, 32, 512, 8)
    model = load("small", "cpu", "float32")
    peaks = {
        row["strategy"]: row["peak_mb"] for row in measure(shape, model, rounds=1, max_tokens=16384)
    }
    config = model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * 4
    print({name: round(peak) for name, peak in peaks.items()}, static * per_token / 2**20)
    # The KV itself, its gradient, and the copy that stands before each branch's own keys.
    assert peaks["exact_by_pass"] <= 1.1 * peaks["static"] + 3 * static * per_token / 2**20
    assert peaks["exact_by_pass"] <= 0.5 * peaks["exact"]
    assert peaks["exact_by_pass"] <= 0.25 * peaks["snapshot"]


def test_ghosts_have_a_section_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## Ghosts\n\nold\n\n## After\n\nkept\n")
    shape = ["--static", "12", "--slot", "2", "--response", "8", "--states", "2"]
    assert main(["--ghosts", "--rounds", "2", "--page", str(page), *shape]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["policy"] for one in found] == ["exact", "sticky"]
    assert all(one["ghost_tokens"] == 4 for one in found)
    text = page.read_text()
    assert text.startswith("# Page\n\n## Ghosts\n")
    assert text.endswith("\n## After\n\nkept\n")
    assert "old" not in text
    assert text.count("| 12, 2, 8, 2 |") == 2
    with pytest.raises(SystemExit):
        main(["--page", str(page)])


def test_impossible_shapes_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--static", "4", "--response", "2", "--states", "5"])
    assert "at least one token per state" in capsys.readouterr().err
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        run(4, dtype="float3")
