"""The pack benchmark: what it feeds each method, and what it prints."""

from __future__ import annotations

import json

import pytest

from benchmarks.pack import edited_response, main, run
from dynatok_online.plan import plan_rows
from dynatok_online.spans import audit


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


def test_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(12, 2, 8, 2, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found
    assert [row["strategy"] for row in found] == [
        "snapshot",
        "truncated",
        "exact",
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


def test_impossible_shapes_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--static", "4", "--response", "2", "--states", "5"])
    assert "at least one token per state" in capsys.readouterr().err
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        run(4, dtype="float3")
