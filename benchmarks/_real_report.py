"""The experiment on a real model as a page: means over seeds, intervals over seeds and passes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks._adherence_tables import spikes
from benchmarks._share import wilson
from dynatok_online.adherence.measures import interval

Result = dict[str, Any]
Scores = dict[str, list[float]]

LABELS = {
    "base": "untrained",
    "packed_exact": "packed spans, exact",
    "packed_sticky": "packed spans, sticky",
    "truncated": "one truncated pass per state",
    "snapshot_one": "snapshot masking, one state",
    "snapshot_all": "snapshot masking, all states",
    "appended": "correction appended to the text",
}
SHOWN = (
    ("base", "exact"),
    ("base", "sticky"),
    ("base", "gold"),
    ("packed_exact", "exact"),
    ("packed_exact", "sticky"),
    ("packed_sticky", "sticky"),
    ("packed_sticky", "exact"),
    ("truncated", "exact"),
    ("snapshot_one", "exact"),
    ("snapshot_all", "exact"),
    ("appended", "appended"),
)
"""(arm, how it generates), in the order of the tables."""
REFERENCE = ("packed_exact", "exact")
"""What the others are held against, seed by seed."""
LEVEL = 2.15
"""A mean loss, in nats per token, that training comes to on its way."""
RESAMPLES = 1000


def macro(scores: Scores) -> float:
    """The mean over requirements of the mean over passes; NaN where there is none."""
    return fmean(map(fmean, scores.values())) if scores else math.nan


def over_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % interval (Student's t) over seeds; empty for a value that is missing."""
    if not values or any(math.isnan(one) for one in values):
        return ""
    found = interval(values)
    digits = 3 if abs(found.mean) < 10 else 1 if abs(found.mean) < 1000 else 0
    half = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def over_passes(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the passes' scores, and its 95 % bootstrap interval."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(scores, k=len(scores))) for _ in range(RESAMPLES))
    return fmean(scores), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def write_report(
    results: Sequence[Result], path: Path, missing: Sequence[tuple[str, int]] = ()
) -> None:
    """The page and its figure, beside each other; `missing`: (arm, seed) not run yet."""
    if not results:
        path.write_text("# Adherence on a real language model\n\nNothing was run yet.\n")
        return
    by_arm: dict[str, list[Result]] = {}
    for one in results:
        by_arm.setdefault(one["arm"], []).append(one)
    figures = draw(by_arm, path)
    path.write_text("\n".join(_page(results, by_arm, figures, missing)) + "\n")


def _page(
    results: Sequence[Result],
    by_arm: dict[str, list[Result]],
    figures: Sequence[str],
    missing: Sequence[tuple[str, int]],
) -> list[str]:
    settings, machine = results[0]["settings"], results[0]["machine"]
    seeds = sorted({one["seed"] for one in results})
    found = list(_found(by_arm))
    return [
        "# Adherence on a real language model",
        "",
        "Written by `dynatok bench real` from `real.jsonl`. "
        f"Model: {settings['model']}. Gold: {settings['texts']} texts of the untrained model, "
        "rewritten segment by segment under random edits; every arm trains on the same ones in "
        f"the same order, {settings['steps']} steps of {settings['batch']} at "
        f"{settings['learning_rate']:g}. Held-out: {settings['tasks']} tasks on topics that no "
        "gold text is about, one or two slots, one or two edits each, at most "
        f"{settings['max_tokens']} tokens, sampled at temperature 0.8 with a real KV cache "
        "(`benchmarks._sampling`; no engine is involved). "
        f"{machine['device']}, {settings['dtype']}, attention {settings['attention']}, torch "
        f"{machine['torch']}, transformers {machine['transformers']}; {machine['date']}. Seeds "
        f"{', '.join(map(str, seeds))}: mean ± 95 % interval over seeds (Student's t).",
        "",
        *_missing(missing),
        *(
            line
            for note in dict.fromkeys(one.get("note") for one in results)
            if note
            for line in (note, "")
        ),
        *(f"![{name}]({name})" for name in figures),
        "",
        "## What is written after an edit",
        "",
        "Adherence: share of the judged units (words, sentences) written under a state that "
        "satisfy it; the mean over requirements of the mean over passes. After an edit: passes "
        "that begin with an edit of that slot. Static: before the first edit. Kept: slots that "
        "were not edited, after the first edit. NLL: nats per token under the untrained model, "
        "given the prompt of each pass; text in other letters is unlikely to it, so compare with "
        "gold. Computed: tokens computed per generated token, recomputation included.",
        "",
        *_table(
            found,
            ("seeds", lambda one: math.nan),
            ("edited passes", lambda one: math.nan),
            ("after an edit", lambda one: macro(one["after"])),
            ("static", lambda one: macro(one["static"])),
            ("kept", lambda one: macro(one["kept"])),
            ("latency, tokens", lambda one: one["latency"]),
            ("NLL", lambda one: one["nll_under_base"]),
            ("repetition", lambda one: one["repetition"]),
            ("tokens", lambda one: one["length"]),
            ("stopped", lambda one: one["stopped"]),
            ("computed", lambda one: one.get("computed_per_token", math.nan)),
        ),
        "",
        "## Seed by seed",
        "",
        "Adherence after an edit, less that of packed exact training generated exactly: the mean "
        "over seeds that both have ± 95 % interval. Told apart: the interval leaves 0 out.",
        "",
        *_differences(by_arm),
        "",
        "## By requirement",
        "",
        "Adherence after an edit to it: mean over the passes of all seeds [95 % bootstrap "
        "interval over passes] (passes).",
        "",
        *_by_requirement(found),
        "",
        "Share of those passes in which every unit holds [95 % Wilson interval].",
        "",
        *_whole_passes(found),
        "",
        "## Edits that say nothing",
        "",
        "An edit is measured where the response goes on after it and something written under it "
        "can be judged. Edits come at tokens drawn before anything is written, well inside the "
        "longest response; a model that ends sooner leaves many of them unmeasured, and those "
        "that remain stand in its longest responses. Adherence of a row with few passes is "
        "uncertain, and the mean over requirements more so, as some may have one or two passes.",
        "",
        *_silent(found),
        "",
        "## Training",
        "",
        *_training(by_arm),
        "",
        "A spike is a step whose mean loss is above 1.5 times the median of the ten before it. "
        f"Steps to {LEVEL}: until the mean loss of twenty steps is that low; the loss of an arm "
        "that trains a text under one of its states is one of other tokens, and no comparison.",
        "",
        "## What it reads like",
        "",
        "The first held-out task of the first seed; the prompt's slots stand in front of what was "
        "written under them.",
        "",
        *_samples(by_arm),
        "",
        "## Is what was sampled what is trained on?",
        "",
        "Distance of the log-probabilities recorded while sampling from those of a packed "
        "forward of the same trajectories, mean and largest. In bfloat16 the two sum in another "
        "order and round to eight bits, which alone makes some hundredths, about the same for the "
        "untrained model and for every reuse.",
        "",
        *_gaps(found),
    ]


def _missing(missing: Sequence[tuple[str, int]]) -> list[str]:
    """What was not run yet, and how it is."""
    if not missing:
        return []
    seeds: dict[str, list[str]] = {}
    for arm, seed in missing:
        seeds.setdefault(arm, []).append(str(seed))
    listed = "; ".join(f"{LABELS[arm]} (seeds {', '.join(some)})" for arm, some in seeds.items())
    return [
        f"**Not run yet**: {listed}. `dynatok bench real` runs what is missing and writes this "
        "page anew; what is here is not run again.",
        "",
    ]


def _found(by_arm: dict[str, list[Result]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """(label, one measurement a seed) of everything that was measured."""
    for arm, mode in SHOWN:
        measured = [one["modes"][mode] for one in by_arm.get(arm, []) if mode in one["modes"]]
        if mode == "gold":  # the same texts for every seed
            measured = measured[:1]
        if measured:
            how = "gold texts" if mode == "gold" else f"{LABELS[arm]}; generated {_how(mode)}"
            yield how, measured


def _how(mode: str) -> str:
    return {"exact": "exactly", "sticky": "stickily", "appended": "so"}[mode]


Column = tuple[str, Callable[[dict[str, Any]], float]]
Found = Sequence[tuple[str, list[dict[str, Any]]]]


def _table(found: Found, *columns: Column) -> list[str]:
    lines = [
        f"| trained; generated | {' | '.join(name for name, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for label, measured in found:
        cells = []
        for name, value in columns:
            if name == "seeds":
                cells.append(str(len(measured)))
            elif name == "edited passes":
                cells.append(str(sum(len(s) for one in measured for s in one["after"].values())))
            else:
                cells.append(over_seeds([value(one) for one in measured]))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _differences(by_arm: dict[str, list[Result]]) -> list[str]:
    lines = ["| trained; generated | seeds | difference | told apart |", "|---|---|---|---|"]
    reference = _by_seed(by_arm, *REFERENCE)
    for arm, mode in SHOWN:
        if mode == "gold" or (arm, mode) == REFERENCE:
            continue
        found = _by_seed(by_arm, arm, mode)
        apart = [found[seed] - reference[seed] for seed in sorted(found.keys() & reference.keys())]
        if apart:
            one = interval(apart)
            told = "yes" if abs(one.mean) > one.half else "no"
            lines.append(
                f"| {LABELS[arm]}; generated {_how(mode)} | {one.count} | {one.signed} | {told} |"
            )
    return lines


def _by_seed(by_arm: dict[str, list[Result]], arm: str, mode: str) -> dict[int, float]:
    return {
        one["seed"]: macro(one["modes"][mode]["after"])
        for one in by_arm.get(arm, [])
        if mode in one["modes"]
    }


def _requirements(found: Found) -> list[str]:
    return sorted({name for _, measured in found for one in measured for name in one["after"]})


def _by_requirement(found: Found) -> list[str]:
    names = _requirements(found)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for label, measured in found:
        cells = []
        for name in names:
            scores = [score for one in measured for score in one["after"].get(name, [])]
            if scores:
                mean, low, high = over_passes(scores)
                cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}] ({len(scores)})")
            else:
                cells.append("")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _whole_passes(found: Found) -> list[str]:
    lines = ["| | passes | every unit holds |", "|---|---|---|"]
    for label, measured in found:
        count = sum(len(scores) for one in measured for scores in one["after"].values())
        held = sum(sum(one["after_holds"].values()) for one in measured)
        if count:
            low, high = wilson(held, count)
            lines.append(f"| {label} | {count} | {held / count:.3f} [{low:.3f}, {high:.3f}] |")
    return lines


def _silent(found: Found) -> list[str]:
    lines = [
        "| | edits | the response ended before | nothing to judge | never followed |",
        "|---|---|---|---|---|",
    ]
    for label, measured in found:
        total = {
            name: sum(one[name] for one in measured)
            for name in ("edits", "unreached", "silent", "never")
        }
        lines.append(
            f"| {label} | {total['edits']} | {total['unreached']} | {total['silent']} "
            f"| {total['never']} |"
        )
    return lines


def _training(by_arm: dict[str, list[Result]]) -> list[str]:
    lines = [
        "| arm | seeds | steps | loss tokens | tokens run per loss token | seconds | loss, last 20 "
        f"steps | steps to {LEVEL} | thousand tokens run until then | gradient norm, highest over "
        "median | spikes per 100 steps |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, label in LABELS.items():
        runs = [one["training"] for one in by_arm.get(arm, []) if "training" in one]
        if not runs:
            continue
        cells = [
            str(len(runs)),
            str(runs[0]["steps"]),
            over_seeds([one["loss_tokens"] for one in runs]),
            over_seeds([one["tokens"] / one["loss_tokens"] for one in runs]),
            over_seeds([one["seconds"] for one in runs]),
            over_seeds([fmean(one["nll"][-20:]) for one in runs]),
            over_seeds([steps_to_level(one["nll"]) for one in runs]) or "not in every run",
            over_seeds(
                [steps_to_level(one["nll"]) * one["tokens"] / one["steps"] / 1e3 for one in runs]
            ),
            over_seeds([max(one["grad_norm"]) / median(one["grad_norm"]) for one in runs]),
            over_seeds([100 * spikes(one["nll"]) / len(one["nll"]) for one in runs]),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def steps_to_level(losses: Sequence[float], over: int = 20) -> float:
    """Steps until the mean loss of the last ones is at `LEVEL`; NaN where it never is."""
    for step in range(over, len(losses) + 1):
        if fmean(losses[step - over : step]) <= LEVEL:
            return step
    return math.nan


def _gaps(found: Found) -> list[str]:
    lines = ["| | mean | largest |", "|---|---|---|"]
    for label, measured in found:
        gaps = [one["logprob_gap"] for one in measured if "logprob_gap" in one]
        if gaps:
            mean, most = fmean(one["mean"] for one in gaps), max(one["most"] for one in gaps)
            lines.append(f"| {label} | {mean:.1e} | {most:.1e} |")
    return lines


def _samples(by_arm: dict[str, list[Result]]) -> list[str]:
    lines = []
    for arm, mode in SHOWN:
        for one in by_arm.get(arm, [])[:1]:
            for text in one["modes"].get(mode, {}).get("samples", [])[:1]:
                written = " ".join(f"**[{state}]** {part.strip()}" for state, part in text)
                lines += [f"- {LABELS[arm]}; generated {_how(mode)}: {written}"]
    return lines


def draw(by_arm: dict[str, list[Result]], path: Path) -> list[str]:
    """The figure's file name: adherence by arm, and by requirement."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    found = list(_found(by_arm))
    for at, (_, measured) in enumerate(found):
        values = [macro(one["after"]) for one in measured]
        half = interval(values).half
        left.barh(at, fmean(values), color="#2563eb" if at else "#9ca3af", alpha=0.35)
        left.plot(values, [at] * len(values), "o", color="#1e3a8a", markersize=3)
        if not math.isnan(half):
            left.errorbar(fmean(values), at, xerr=half, color="#1e3a8a", capsize=2)
    left.set_yticks(range(len(found)), [label for label, _ in found], fontsize=6.5)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_xlabel("adherence after an edit")
    names = _requirements(found)
    drawn = [one for one in found if one[0].startswith((LABELS["base"], "packed"))]
    shown = set[str]()
    for i, (label, measured) in enumerate(drawn):
        for at, name in enumerate(names):
            scores = [score for one in measured for score in one["after"].get(name, [])]
            if scores:
                mean, low, high = over_passes(scores)
                right.errorbar(
                    at + (i - len(drawn) / 2) * 0.12,
                    mean,
                    yerr=[[mean - low], [high - mean]],
                    fmt="os^vDP"[i % 6],
                    color=("#9ca3af", "#6b7280", "#2563eb", "#60a5fa", "#dc2626", "#f59e0b")[i % 6],
                    markersize=4,
                    linewidth=1,
                    label=label if label not in shown else None,
                )
                shown.add(label)
    right.set_xticks(range(len(names)), names, fontsize=7, rotation=20, ha="right")
    right.set_ylim(0, 1.02)
    if shown:
        right.legend(
            frameon=False, fontsize=6.5, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
        )
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    target = path.with_suffix(".png")
    figure.savefig(target)
    return [target.name]
