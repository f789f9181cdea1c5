"""What `dynatok bench actor` writes into its page: a section for each question.

Rows are kept beside the page, one line of JSON each. A run replaces the rows that it measured, so
that the page can be brought up to date in several sittings.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._edit_cost import Row, Shape
from benchmarks._edit_sessions import MODES, PLAIN, STATIC
from benchmarks._page import write_section

Line = dict[str, Any]

_ORDER = (STATIC, PLAIN, *MODES)


def write_page(page: Path, rows: Sequence[Row], shape: Shape, day: str) -> None:
    """The sections, from these rows and those that were measured before."""
    raw = page.with_suffix(".jsonl")
    lines = merged(
        [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else [],
        [asdict(row) | {"day": day} for row in rows],
    )
    raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_section(page, "## Against static text", against_static(lines, shape))
    write_section(page, "## The price of watching", price_of_watching(lines))
    write_section(page, "## From an edit to the first new token", first_token(lines))


def merged(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Old rows, but where there are new ones; in order."""
    found = {_key(line): line for line in (*old, *new)}
    return [found[key] for key in sorted(found)]


def _key(line: Line) -> tuple[bool, int, int, int]:
    mode = line["mode"]
    return line["model"] != "tiny", line["sessions"], line["states"], _ORDER.index(mode)


def against_static(lines: Sequence[Line], shape: Shape) -> list[str]:
    """Every row."""
    out = [
        f"Prefix {shape.prefix}, slot {shape.slot}, response {shape.response} tokens. n: sessions "
        "at once; K: states of the slot. A ratio is the median over rounds of two times of one "
        "round (least and greatest in brackets); bound: what the recomputed tokens leave of static "
        "speed if each costs what it costs in a plain prefill, and an edit costs nothing else. "
        "Reused and computed: tokens per session.",
        "",
        "| model | n | K | mode | tok/s | against static | rounds | bound | of its bound | reused "
        "| computed | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        if one["mode"] == PLAIN:
            continue
        bound = one["bound_ratio"]
        out.append(
            f"| {one['model']} | {one['sessions']} | {one['states']} | {one['mode']} "
            f"| {one['tok_s']:.0f} | {_ratio(one)} | {len(one.get('ratios', ())) or ''} "
            f"| {bound:.2f} | {one['ratio_to_static'] / bound:.2f} "
            f"| {one['reused_tokens']} | {one['computed_tokens']} | {one.get('day', '')} |"
        )
    return out


def _ratio(line: Line) -> str:
    ratios = line.get("ratios", ())
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(set(ratios)) > 1 else ""
    return f"{line['ratio_to_static']:.2f}{spread}"


def price_of_watching(lines: Sequence[Line]) -> list[str]:
    """Static text through sessions against plain vLLM."""
    out = [
        "Static text through sessions, recorder and cache events against plain vLLM: another "
        "process, without our plugin and without cache events, same engine arguments, prompts, "
        "sampling and log-probabilities, in turns with it.",
        "",
        "| model | sessions | sessions, recorder, events: tok/s | plain vLLM: tok/s | against it "
        "| rounds | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    static = {(one["model"], one["sessions"]): one for one in lines if one["mode"] == STATIC}
    for one in lines:
        if one["mode"] != PLAIN:
            continue
        ours = static[one["model"], one["sessions"]]
        ratios = sorted(1 / ratio for ratio in one["ratios"])
        out.append(
            f"| {one['model']} | {one['sessions']} | {ours['tok_s']:.0f} | {one['tok_s']:.0f} "
            f"| {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) "
            f"| {len(ratios)} | {one['day']} |"
        )
    return out


def first_token(lines: Sequence[Line]) -> list[str]:
    """How long somebody waits who edits."""
    out = [
        "Edits by surprise, in a watched run. Allowed for one session are three decode steps and "
        "the prefill that the edit needs.",
        "",
        "| model | sessions | mode | K | edits | p50, ms | p95, ms | allowed, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        if one["edit_ms_p50"] is None:
            continue
        alone = one["sessions"] == 1
        allowed = f"{3 * one['step_ms'] + one['prefill_ms']:.1f}" if alone else ""
        out.append(
            f"| {one['model']} | {one['sessions']} | {one['mode']} | {one['states']} "
            f"| {one.get('edits', '')} | {one['edit_ms_p50']:.1f} | {one['edit_ms_p95']:.1f} "
            f"| {allowed} |"
        )
    return out
