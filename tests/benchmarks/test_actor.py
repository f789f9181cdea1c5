"""`dynatok bench actor`: what its rows say, and a small run of the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks._actor_report import write_page
from benchmarks._edit_cost import Row, Shape, Timed, costs, pairs
from benchmarks._edit_sessions import MODES
from benchmarks._edited_response import edited_response
from benchmarks.actor import card

KEYS = [
    *("model", "sessions", "states", "mode", "tok_s", "ratio_to_static", "edit_ms_p50"),
    *("edit_ms_p95", "reused_tokens", "computed_tokens", "bound_ratio"),
]


def row(mode: str, states: int, p50: float | None) -> Row:
    return Row("tiny", 1, states, mode, 1234.5, 0.93, p50, p50, 96, 700, 0.95, 2.0, 3.0)


def test_the_card_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("static", 1, None), *(row(mode, 8, 123.4) for mode in MODES)]
    card(rows, Shape(), Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "3 decode steps and the prefill take 9.0 ms" in " ".join(out.split())


def test_rows_have_the_promised_columns() -> None:
    assert list(asdict(row("static", 1, None)))[: len(KEYS)] == KEYS


def test_the_cost_of_a_prefill_is_split_into_tokens_and_pairs() -> None:
    short = Timed([9.0, 1.3, 1.3], computed=100, pairs=1000)
    long = Timed([0.1, 4.4, 4.4], computed=200, pairs=8000)
    assert costs(short, long) == pytest.approx((0.01, 0.0003))
    flat = Timed([1.0], computed=200, pairs=8000)
    assert costs(short, flat) == (1.0 / 200, 0.0)


def test_pairs_of_an_edited_response() -> None:
    static = edited_response("exact", 4, 2, 6, 1, 50)
    assert pairs(static) == sum(range(1, 12))  # the last token is never fed
    edited = edited_response("exact", 4, 2, 6, 2, 50)
    # Two passes of 3 tokens: positions 0 .. 7, then 4 .. 10.
    assert pairs(edited) == sum(range(1, 9)) + sum(range(5, 12))


def test_the_page_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    page = tmp_path / "actor.md"
    page.write_text("# The actor\n\nWords.\n\n## Where the time goes\n\nMore words.\n")
    one = replace(row("sticky", 8, 12.0), sessions=32, ratios=(0.8, 0.93, 0.95), edits=224)
    plain = replace(row("plain vLLM", 1, None), sessions=32, ratios=(1.0, 1.25, 2.0))
    static = replace(row("static", 1, None), sessions=32)
    write_page(page, [static, plain, one], Shape(), "2026-01-02")
    write_page(page, [replace(static, tok_s=99.0)], Shape(), "2026-01-03")
    text = page.read_text()
    assert "Words." in text
    assert "More words." in text
    assert text.count("## Against static text") == 1
    assert "| tiny | 32 | 1 | static | 99 |" in text
    assert "| tiny | 32 | 8 | sticky | 1234 | 0.93 (0.80 to 0.95) | 3 | 0.95 | 0.98 |" in text
    assert "| tiny | 32 | 99 | 1234 | 0.800 (0.500 to 1.000) | 3 | 2026-01-02 |" in text
    assert "| tiny | 32 | sticky | 8 | 224 | 12.0 | 12.0 |  |" in text
    assert len((tmp_path / "actor.jsonl").read_text().splitlines()) == 3


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
        (1, "plain vLLM"),
        *((3, mode) for mode in MODES),
    ]
    static, plain, head, late, sticky, *refreshed = rows
    assert plain["tok_s"] > 0
    assert plain["computed_tokens"] == static["computed_tokens"]
    assert static["ratio_to_static"] == static["bound_ratio"] == 1.0
    assert sticky["computed_tokens"] < head["computed_tokens"]
    assert static["computed_tokens"] < min(late["computed_tokens"], sticky["computed_tokens"])
    costs = [one["computed_tokens"] for one in (sticky, *refreshed)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]
    assert all(one["edit_ms_p50"] > 0 for one in rows[2:])
