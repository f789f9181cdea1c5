"""The page of the objectives experiment, from its raw results alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks._objectives_arms import CHAT, CREDIT, DATA, arms
from benchmarks._objectives_verdicts import (
    CHAT_SEEDS,
    GAIN,
    SEEDS,
    Result,
    credit,
    headlines,
    paired,
    too_early,
)
from dynatok_online.adherence.measures import interval

COLUMNS = {
    "adherence_after_edit": "adherence after edit",
    "adherence_kept": "kept slots",
    "adherence_static": "before the first edit",
    "drift": "drift, nats",
    "valid": "valid",
    "unique": "unique",
    "distinct_valid": "distinct valid",
}


def write_report(results: Sequence[Result], path: Path, chat: Sequence[Result] = ()) -> None:
    """Write `path` and its figure beside it. `chat`: the results of a chat model."""
    if not (results or chat):
        raise SystemExit("there are no raw results yet: run the experiment first")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Objectives: what a token counts",
        "",
        "`dynatok bench objectives` runs what is missing of the raw results (`objectives.jsonl`, "
        "with `--model smollm2` `objectives-chat.jsonl`: one line per arm and seed) and writes "
        "this page from them.",
        "",
    ]
    if results:
        most, *others = by_loss_tokens(results)
        lines += text(most, draw(most, path))
        for one in others:
            lines += text_of_others(one, SEEDS)
    if chat:
        most, *others = by_loss_tokens(chat)
        lines += text_of_chat(most)
        for one in others:
            lines += text_of_others(one, CHAT_SEEDS)
    path.write_text("\n".join(lines[:-1]) + "\n")


def by_loss_tokens(results: Sequence[Result]) -> list[list[Result]]:
    """Results of equally many loss tokens, the largest group first; the untrained model, which has
    seen none, is in each."""
    untrained = [one for one in results if one["arm"] == "base"]
    groups: dict[int, list[Result]] = defaultdict(list)
    for one in results:
        if one["arm"] != "base":
            groups[one["settings"]["loss_tokens"]].append(one)
    found = sorted(groups.values(), key=len, reverse=True)
    return [[*one, *untrained] for one in found] or [untrained]


def text_of_others(results: Sequence[Result], planned: int) -> list[str]:
    """The part on some arms that went on for more loss tokens, or for fewer."""
    settings = results[0]["settings"]
    return [
        f"## {settings['model']} after {settings['loss_tokens']} loss tokens",
        "",
        "Run after the results above were known; nothing else is different.",
        "",
        *credit(results, planned, {one["arm"] for one in results}),
        "",
        *too_early(results),
        *_tables(results, "###"),
    ]


def text(results: Sequence[Result], figure: str | None) -> list[str]:
    """The part on the tiny world."""
    settings = results[0]["settings"]
    seconds = max(one["settings"]["seconds"] for one in results)
    missing = [one.key for one in arms() if one.key not in {one["arm"] for one in results}]
    return [
        f"The tiny world, model {settings['model']}, exact reuse. All arms of a seed begin with "
        "the same weights; on gold they see the same texts in the same order. AdamW, ten steps of "
        "warm-up, eight trajectories a step, learning rate 1e-3 (6e-4 on policy). Measured on "
        f"{settings['tasks']} held-out tasks at temperature 1, after {settings['loss_tokens']} "
        f"loss tokens and after {seconds:.0f} CPU seconds of training on one thread. "
        "Mean ± 95 % interval over seeds, with their number. Drift: KL to the untrained model on "
        "gold texts without edits. Coverage: eight responses to each of eight tasks, of which the "
        f"text since the last edit is valid, unique, both. {_ran(results)}",
        "",
        *([f"![objectives]({figure})", ""] if figure else []),
        "## Counterfactual credit",
        "",
        f"The rule, set before the runs: credit works where adherence after an edit, at "
        f"{settings['loss_tokens']} loss tokens, is higher by {GAIN} or more than without it *and* "
        "than with the same credit dealt out at random within each trajectory, and both intervals "
        "lie above 0. Seeds are paired.",
        "",
        *credit(results),
        "",
        *_tables(results, "##"),
        "## What was published, and what came",
        "",
        "At equal loss tokens. Arms that select (qtuning, tshirt, quarter: by lot) see a part of "
        "the texts that sft sees once as often as that takes; tokens that Q-Tuning prunes are "
        "computed, and count 0.",
        "",
        *headlines(results),
        "",
        *_missing(missing),
    ]


def text_of_chat(results: Sequence[Result]) -> list[str]:
    """The part on a chat model."""
    settings = results[0]["settings"]
    missing = [one for one in CHAT if one not in {one["arm"] for one in results}]
    judged = [one["at_loss_tokens"]["edits_judged"] for one in results if one["arm"] != "base"] or [
        0
    ]
    return [
        f"## A chat model: {settings['model']}",
        "",
        "Gold texts, held-out topics and verifiers of [real.md](real.md), exact reuse; corrupted: "
        "as one would write on who overlooks one edit in five. AdamW, ten steps of warm-up, four "
        f"trajectories a step, learning rate 2e-4, {settings['loss_tokens']} loss tokens. "
        f"Measured on {settings['tasks']} held-out tasks of at most 96 tokens at temperature 0.8; "
        f"an arm of a seed has {min(judged)} to {max(judged)} edits with something to judge behind "
        "them, each of which has one vote. Mean ± 95 % interval over seeds. Drift: KL to the "
        "untrained model on its own texts to prompts without requirements. Coverage: four "
        f"responses to each of six tasks. {_ran(results)}",
        "",
        f"Counterfactual credit, by the rule above ({CHAT_SEEDS} seeds are planned here, so "
        "intervals are wide):",
        "",
        *credit(results, CHAT_SEEDS, CHAT),
        "",
        *too_early(results),
        *_tables(results, "###"),
        "### What was published, and what came, on this model",
        "",
        *headlines(results, {*CHAT, *(one["arm"] for one in results)}),
        "",
        *_missing(missing),
    ]


def _ran(results: Sequence[Result]) -> str:
    """On what, when, and how many seeds."""
    counts = sorted(Counter(one["arm"] for one in results).values())
    machine = results[-1]["machine"]
    seeds = (
        f"{counts[0]} seeds of every arm."
        if counts[0] == counts[-1]
        else f"{counts[0]} to {counts[-1]} seeds of an arm: the rest has not run yet."
    )
    return (
        f"{machine['cpu']}; torch {machine['torch']}, transformers {machine['transformers']}; "
        f"{machine['date']}; {seeds}"
    )


def _missing(names: Sequence[str]) -> list[str]:
    return [f"Not run yet: {', '.join(f'`{name}`' for name in names)}.", ""] if names else []


def _tables(results: Sequence[Result], level: str) -> list[str]:
    """Data by data, at equal loss tokens and at equal time."""
    settings = results[0]["settings"]
    seconds = max(one["settings"]["seconds"] for one in results)
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        by_arm[one["arm"]].append(one)
    lines: list[str] = []
    for data, what in DATA.items():
        here = [one.key for one in arms() if one.data == data and one.key in by_arm]
        if not here:
            continue
        lines += [f"{level} On {what}", ""]
        for where, when in (
            ("at_loss_tokens", f"after {settings['loss_tokens']} loss tokens"),
            ("at_seconds", f"after {seconds:.0f} s of training"),
        ):
            if not any(where in one for key in here for one in by_arm[key]):
                continue
            names = {
                name: label
                for name, label in COLUMNS.items()
                if any(name in one.get(where, {}) for key in here for one in by_arm[key])
            }
            lines += [
                f"| {when} | seeds | {' | '.join(names.values())} | against sft | steps |",
                f"|---|---|{'---|' * (len(names) + 2)}",
            ]
            for key in ["base", *here]:
                found = [one[where] for one in by_arm.get(key, []) if where in one]
                if not found:
                    continue
                cells = [_cell([one.get(name) for one in found]) for name in names]
                difference = paired(results, key, f"{data}/sft", where, "adherence_after_edit")
                against = (
                    ""
                    if difference is None or key in ("base", f"{data}/sft")
                    else difference.signed
                )
                steps = [one.get("step") for one in found]
                label = "untrained" if key == "base" else key.partition("/")[2]
                lines.append(
                    f"| {label} | {len(found)} | {' | '.join(cells)} | {against} | "
                    f"{'' if steps[0] is None else _mean(steps)} |"
                )
            lines.append("")
    return lines


def _cell(values: Sequence[float | None]) -> str:
    known = [one for one in values if one is not None]
    return str(interval(known)) if known else ""


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.0f}"


def draw(results: Sequence[Result], path: Path) -> str | None:
    """Adherence after an edit against drift, at equal loss tokens; the file's name."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained")
    credited = {arm for arm, _, _ in CREDIT}
    panels = [data for data in DATA if any(one["arm"].startswith(data) for one in results)]
    if not panels:
        return None
    for axes, data in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key in ["base", *(one.key for one in arms() if one.data == data)]:
            found = [
                one["at_loss_tokens"]
                for one in results
                if one["arm"] == key and "at_loss_tokens" in one
            ]
            if not found:
                continue
            x, y = (
                interval([one[name] for one in found]) for name in ("drift", "adherence_after_edit")
            )
            color = "#c2512f" if key in credited else "#111827" if key == "base" else "#2563a8"
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=0 if math.isnan(x.half) else x.half,
                yerr=0 if math.isnan(y.half) else y.half,
                fmt="o",
                color=color,
                markersize=4,
                elinewidth=0.8,
            )
            name = "untrained" if key == "base" else key.partition("/")[2]
            axes.annotate(
                name, (x.mean, y.mean), xytext=(5, 3), textcoords="offset points", fontsize=6.5
            )
        axes.set_title(data, fontsize=9, loc="left")
        axes.set_xlabel("drift, nats per token")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("adherence after an edit")
    picture = path.with_suffix(".png")
    figure.savefig(picture, metadata={"Software": ""})
    return picture.name
