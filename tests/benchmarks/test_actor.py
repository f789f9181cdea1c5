"""`dynatok bench actor`: what its rows say, and a small run of the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from rich.console import Console

from benchmarks import actor
from benchmarks.actor import Row, Shape, card

KEYS = [
    *("model", "sessions", "states", "mode", "tok_s", "ratio_to_static", "edit_ms_p50"),
    *("edit_ms_p95", "reused_tokens", "computed_tokens", "bound_ratio"),
]


def row(mode: str, states: int, p50: float | None) -> Row:
    return Row("tiny", 1, states, mode, 1234.5, 0.93, p50, p50, 96, 700, 0.95, 2.0, 3.0)


def test_the_card_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("static", 1, None), *(row(mode, 8, 123.4) for mode in actor.MODES)]
    card(rows, Shape(), Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "3 decode steps and the prefill take 9.0 ms" in " ".join(out.split())


def test_rows_have_the_promised_columns() -> None:
    assert list(asdict(row("static", 1, None)))[: len(KEYS)] == KEYS


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_a_small_run() -> None:
    command = ["bench", "actor", "--models", "tiny", "--sessions", "2", "--states", "3"]
    sizes = ["--prefix", "64", "--slot", "8", "--response", "144", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *command, *sizes],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [(one["states"], one["mode"]) for one in rows] == [
        (1, "static"),
        *((3, mode) for mode in actor.MODES),
    ]
    static, head, late, sticky = rows
    assert static["ratio_to_static"] == static["bound_ratio"] == 1.0
    assert sticky["computed_tokens"] < head["computed_tokens"]
    assert static["computed_tokens"] < min(late["computed_tokens"], sticky["computed_tokens"])
    assert all(one["edit_ms_p50"] > 0 for one in rows[1:])
