"""The report of the adherence experiment, from its raw results alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks._adherence_figure import draw
from benchmarks._adherence_tables import (
    GENERATED,
    LEVEL,
    ROWS,
    SPIKE,
    Result,
    stability,
    table,
    times,
)
from benchmarks._adherence_verdicts import verdicts


def write_report(results: Sequence[Result], path: Path) -> None:
    """Write `path` and its figures beside it."""
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        by_arm[one["arm"]].append(one)
    if not by_arm:
        raise SystemExit("there are no raw results yet: run the experiment first")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = draw(by_arm, path)
    path.write_text("\n".join(text(by_arm, figures)) + "\n")


def text(by_arm: dict[str, list[Result]], figures: Sequence[str]) -> list[str]:
    """The lines of the report."""
    first = next(iter(by_arm.values()))[0]
    settings, machine = first["settings"], first["machine"]
    seeds = sorted({one["seed"] for arm in by_arm.values() for one in arm})
    return [
        "# Adherence: does it work?",
        "",
        "`dynatok bench adherence` runs what is missing of the raw results "
        "(`adherence.jsonl`, one line per arm and seed) and writes this page from them.",
        "",
        "The tiny world, its shipped model, gold responses under one to three scripted edits. All "
        "arms of a seed begin with the same weights, see the same gold texts in the same order, "
        "and share one optimizer (AdamW, 1e-3, ten steps of warm-up, clipping at 1). Held-out "
        f"tasks ({settings['tasks']}, the same for all) are sampled at temperature 1 by "
        "`dynatok_online.tiny.sampling`, which keeps a real KV cache and, for sticky, replaces the "
        "edited slot's 16-token blocks alone; its log-probabilities are those of the spans that "
        "the learner trains on. No engine is involved. "
        "Training time is CPU time of one thread, so other jobs on the machine count little: they "
        "ran beside it. Mean ± 95 % interval over seeds "
        f"{', '.join(map(str, seeds))}; {machine['cpu']}; torch {machine['torch']}, transformers "
        f"{machine['transformers']}; {machine['date']}.",
        "",
        *(f"![{name}]({name})" for name in figures),
        "",
        f"## After {settings['seconds']:.0f} s of training",
        "",
        *table(
            by_arm,
            ROWS,
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("worst seed", lambda m: m["adherence_after_edit"], min),
            ("latency", lambda m: m["latency"]),
            ("kept slots", lambda m: m["adherence_kept"]),
            ("NLL under base", lambda m: m["nll_under_base"]),
            ("known words", lambda m: m["known_words"]),
            ("steps", lambda m: m["step"]),
            ("loss tokens", lambda m: m["loss_tokens"]),
        ),
        "",
        f"## After {settings['loss_tokens']} loss tokens",
        "",
        *table(
            by_arm,
            tuple((arm, "at_loss_tokens", label) for arm, _, label in ROWS),
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("worst seed", lambda m: m["adherence_after_edit"], min),
            ("training time, s", lambda m: m["seconds"]),
            ("steps", lambda m: m["step"]),
            ("tokens run per loss token", lambda m: m["tokens"] / m["loss_tokens"]),
        ),
        "",
        "## How it is generated",
        "",
        *table(
            by_arm,
            GENERATED,
            ("adherence after edit", lambda m: m["adherence_after_edit"]),
            ("before", lambda m: m["adherence_static"]),
            ("latency", lambda m: m["latency"]),
            ("never followed", lambda m: m["never"]),
            ("tokens computed per generated one", lambda m: m.get("computed_per_token", math.nan)),
            ("recomputed per edit", lambda m: m.get("extra_tokens_per_edit", math.nan)),
            ("NLL under base", lambda m: m["nll_under_base"]),
            ("repetition", lambda m: m["repetition"]),
        ),
        "",
        "Latency: characters from an edit to the first compliant sentence; an edit that is never "
        "followed counts with the length of its pass. For (h) the appended text is what is "
        "recomputed. Known words: share of the response's words that the tiny world has.",
        "",
        f"## Time to an adherence of {LEVEL}",
        "",
        *times(by_arm),
        "",
        "Read off the curves (32 held-out tasks each sixth of the time, linear in between). A seed "
        "that did not get there in time counts with the whole time.",
        "",
        "## Stability",
        "",
        *stability(by_arm),
        "",
        f"A spike is a step whose mean loss per token is above {SPIKE} times the median of the ten "
        "steps before it.",
        "",
        "## What was expected, and what came",
        "",
        *verdicts(by_arm),
    ]
