"""The report of the stale map, from its raw results alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._stale_families import FAMILIES, HALVES
from benchmarks._stale_figure import draw
from benchmarks._stale_numbers import EFFECT, FEWEST, RESAMPLES, Figure, Results, over_seeds

Line = dict[str, Any]
FAR = 50
"""Distances from here on are pooled where a family has one number."""
MAIN = ("exact", "sticky", "mixture", "refresh")
LEVEL = 0.1

BY_HAND: tuple[tuple[str, str, int, str, str], ...] = (
    ("copy", "copy a fact", 0, "0.01", "20 of 20, 20"),
    ("copy", "copy a fact, three sentences between", 50, "0.10", "20 of 20, 20"),
    ("knowledge", "capital of the country named", 0, "0.02", "30 of 30, 30"),
    ("knowledge", "the same, three sentences between", 50, "0.03", "30 of 30, 30"),
    ("pronoun", "he or she", 0, "0.21", "48 of 48, 48"),
    ("language", "which language, by country of birth", 0, "0.03", "20 of 20, 20"),
    ("language", "the same, three sentences between", 50, "0.52", "19 of 20, 9"),
)
"""What a first measurement by hand had found: family, what, distance, median, decisions under
exact and sticky."""


def write_report(raw: Sequence[Line], path: Path) -> None:
    """Write `path` and its figure beside it."""
    results = Results(raw)
    if not results.cells("untrained", 0):
        raise SystemExit("there are no raw results of the untrained model yet: run it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(results, path.with_suffix(".png"), FAR)
    shown = [f"![stale map]({os.path.relpath(figure, path.parent)})", ""] if figure else []
    lines = [*_head(results), "", *shown, "## In short", "", *_summary(results), ""]
    path.write_text("\n".join([*lines, *_body(results)]).rstrip() + "\n")


def _head(results: Results) -> list[str]:
    finished = results.of("finished")
    machine = finished[-1]["machine"] if finished else {}
    check = results.of("check")
    items = {len(one["right"]["exact"]) for one in results.cells("untrained", 0)}
    exact = (
        f"Before that was measured, {check[0]['answers']} answers were also computed with "
        "transformers' own KV cache, put together segment by segment: the largest difference of "
        f"an answer's log-probability was {check[0]['largest_difference']:.1e}."
        if check
        else ""
    )
    return [
        "# The stale map: which edits does old KV swallow?",
        "",
        "`dynatok bench stale --model PATH` runs what is missing of the raw results "
        "(`stale.jsonl`) and writes this page from them.",
        "",
        "A slot is edited after text was written behind it. Under *sticky* reuse only the slot's "
        "own KV is replaced: what stands behind it keeps the KV that was computed under the old "
        "state. Then the model is asked for something that follows from the slot. An item's "
        "log-odds are those of the answer that the new state asks for over the one that the state "
        "before asked for (summed log-probabilities of the whole answers). Its **stale share** is "
        "the part of the edit's effect that is lost:",
        "",
        "    1 - (sticky - never edited) / (full recomputation - never edited)",
        "",
        f"0: as good as recomputed; 1: the edit is ignored. Only items on which the edit moves the "
        f"log-odds by more than {EFFECT} nats under full recomputation are counted; how many were "
        f"dropped stands beside each number, and with fewer than {FEWEST} left none is given. "
        "**Decisions lost**: of the items whose new answer beats every old one under full "
        "recomputation, those in which it does not under sticky (whatever the size of the effect).",
        "",
        f"{len(FAMILIES)} families of slots, six templates each (three to train on, three held "
        "out) and 12 to 24 values (half held out); everything measured here is on held-out "
        "templates and values, with held-out text in between. Values of one pair have equally many "
        "tokens, so slots keep their width and nothing is filled up; pieces are checked to have "
        "the tokens of the whole text. KV is replaced token by token (an engine rounds a slot up "
        "to whole blocks), and the last token before an edit is computed anew, as it is in the "
        "engine. The caches are the project's own spans and rows, so what is measured is what the "
        f"learner trains on. {exact} Evaluation in float32 without TF32, training with it. "
        "Intervals are 95 %: for one model a bootstrap over items "
        f"({RESAMPLES} resamples; items of one template are taken as independent, which they are "
        "not quite), for trained models Student's t over seeds.",
        "",
        f"Model {machine.get('model', '?')} ({machine.get('parameters', 0) / 1e6:.0f} million "
        f"parameters); {machine.get('device', '?')}; torch {machine.get('torch', '?')}, "
        f"transformers {machine.get('transformers', '?')}; {machine.get('date', '?')}. "
        f"{'/'.join(map(str, sorted(items)))} items in a cell.",
    ]


def _body(results: Results) -> list[str]:
    out = ["## The untrained model", "", *_map(results, "untrained", 0), ""]
    out += ["## Against the first measurement by hand", "", *_by_hand(results), ""]
    if any(results.last(arm) for arm in MAIN):
        out += ["## What training repairs", "", *_repair(results), ""]
        for arm in ("exact", "sticky"):
            step = results.last(arm)
            if step:
                label = _labels()[arm]
                out += [f"### After {step} steps: {label}", "", *_map(results, arm, step), ""]
        out += ["## What it costs", "", *_cost(results), ""]
    if any(results.cells("untrained", 0, edits=edits) for edits in ("aba", "abc")):
        out += ["## Several edits", "", *_several(results), ""]
    out += ["## Without training: recompute a little, or say it again", "", *_repairs(results), ""]
    transfer = _transfer(results)
    if transfer:
        out += ["## Does repair pass from one family to another?", "", *transfer, ""]
    prose = _prose(results)
    if prose:
        out += ["## What it does to everything else", "", *prose, ""]
    return out


def _summary(results: Results) -> list[str]:
    """The numbers that a reader came for, as they are."""
    found = {name: over_seeds(results.cells("untrained", 0, name, _far)) for name in FAMILIES}
    known = {name: one for name, one in found.items() if not math.isnan(one.value)}
    worst = sorted(known, key=lambda name: -known[name].value)
    out = [
        f"- Untrained, {FAR} tokens and more in between, from the stalest family to the freshest: "
        + "; ".join(f"{FAMILIES[name].label} {known[name]}" for name in worst)
        + "."
    ]
    silent = [FAMILIES[name].label for name in FAMILIES if name not in known]
    if silent:
        out.append(
            "- Families on which no edit has enough effect on this model to lose any: "
            f"{'; '.join(silent)}."
        )
    labels = _labels()
    for arm in ("untrained", *MAIN):
        step = results.last(arm)
        if step is None:
            continue
        share = _mean_share(results, arm, step, _far).replace(" | ", "; decisions lost: ")
        seeds = len({one["seed"] for one in results.cells(arm, step)})
        out.append(
            f"- {labels[arm]}{f', {step} steps, {_seeds(seeds)}' if step else ''}: mean over "
            f"families of the median stale share {share}."
        )
    return out


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _labels() -> dict[str, str]:
    from benchmarks._stale_training import ARMS

    return {name: arm.label for name, arm in ARMS.items()}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cell(one: Figure) -> str:
    if math.isnan(one.value):
        return f"– ({one.kept}/{one.items})"
    low = "" if math.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"
    return f"{one.value:.2f}{low} ({one.kept}/{one.items})"


def _map(results: Results, arm: str, step: int) -> list[str]:
    distances = results.distances(arm, step)
    shares, ratios, lost = [], [], []
    for name, family in FAMILIES.items():
        cells = [
            results.cells(arm, step, name, lambda at, d=distance: at == d)  # type: ignore[misc]
            for distance in distances
        ]
        if not any(cells):
            continue
        found = [over_seeds(one) for one in cells]
        shares.append([family.label, *map(_cell, found)])
        sums = [over_seeds(one, measure=lambda odds: odds.ratio) for one in cells]
        ratios.append(
            [family.label, *("–" if math.isnan(x.value) else f"{x.value:.2f}" for x in sums)]
        )
        lost.append(
            [family.label, *(f"{a} of {b} ({n.items})" for n in found for a, b in [n.lost])]
        )
    head = [f"{distance}" for distance in distances]
    return [
        "Stale share, median, by tokens of text in between (items with an effect / items):",
        "",
        *_table(["family", *head], shares),
        "",
        "The same as the share of the summed effects:",
        "",
        *_table(["family", *head], ratios),
        "",
        "Decisions lost, of those right under full recomputation (items):",
        "",
        *_table(["family", *head], lost),
    ]


def _by_hand(results: Results) -> list[str]:
    rows = []
    for family, what, distance, share, decided in BY_HAND:
        cells = results.cells("untrained", 0, family, lambda at, d=distance: at == d)  # type: ignore[misc]
        if not cells:
            continue
        found = over_seeds(cells)
        lost, right = found.lost
        rows.append(
            [
                what,
                share,
                _cell(found),
                decided,
                f"{right} of {found.items}, {right - lost} of them",
            ]
        )
    return [
        "Other texts and values, so only the shape can agree. By hand: one wording a family, "
        "twelve jobs for he and she; here three held-out wordings, at the nearest distance. The "
        "language is asked for by what was passed on (the letters, the songs) and not by who was "
        "born where; the one or two sentences that pass it on stand behind the slot even at 0.",
        "",
        *_table(
            [
                "family",
                "by hand",
                "here",
                "right by hand: exact, sticky",
                "right here: exact, and still under sticky",
            ],
            rows,
        ),
    ]


def _far(at: int) -> bool:
    return at >= FAR


def _repair(results: Results) -> list[str]:
    arms = [("untrained", 0), *((arm, step) for arm in MAIN if (step := results.last(arm)))]
    labels = _labels()
    shares, lost, right = [], [], []
    for name, family in FAMILIES.items():
        found = []
        for arm, step in arms:
            cells = results.cells(arm, step, name, _far)
            condition = "last32" if arm == "refresh" else "sticky"
            found.append(over_seeds(cells, condition) if cells else None)
        shares.append([family.label, *("" if x is None else _cell(x) for x in found)])
        lost.append(
            [family.label, *("" if x is None else f"{x.lost[0]} of {x.lost[1]}" for x in found)]
        )
        right.append(
            [
                family.label,
                *("" if x is None else f"{x.lost[1] / max(1, x.items):.2f}" for x in found),
            ]
        )
    head = [
        "family",
        *(f"{labels[arm]}, {step} steps" if step else labels[arm] for arm, step in arms),
    ]
    return [
        "Each arm sees the same texts of all families in the same order, 8 short trajectories a "
        "step (25, 50 or 100 tokens in between, one edit each), on training values and templates; "
        "loss falls on the tokens after the edit alone. Exact training is then a static text in "
        "the new state. *Refresh* is trained and measured with the last 32 tokens before the edit "
        f"computed anew. Stale share, median, distances of {FAR} and more pooled:",
        "",
        *_table(head, shares),
        "",
        "Decisions lost, of those right under full recomputation, all seeds:",
        "",
        *_table(head, lost),
        "",
        "Right under full recomputation, share of all items (does the model know the answer?):",
        "",
        *_table(head, right),
    ]


def _mean_share(results: Results, arm: str, step: int, distance: Callable[[int], bool]) -> str:
    """Mean over the families that have a share, and how many these are."""
    condition = "last32" if arm == "refresh" else "sticky"
    found = [
        over_seeds(cells, condition)
        for name in FAMILIES
        if (cells := results.cells(arm, step, name, distance))
    ]
    values = [one.value for one in found if not math.isnan(one.value)]
    lost, right = sum(one.lost[0] for one in found), sum(one.lost[1] for one in found)
    if not values:
        return f"– | {lost} of {right}"
    return (
        f"{sum(values) / len(values):.3f} ({len(values)} families, worst {max(values):.2f}) "
        f"| {lost} of {right}"
    )


def _cost(results: Results) -> list[str]:
    labels = _labels()
    common = set(results.distances("untrained", 0))
    for arm in MAIN:
        for step in results.steps(arm):
            common &= set(results.distances(arm, step))
    rows = [["untrained", "0", "0", "0", _mean_share(results, "untrained", 0, common.__contains__)]]
    reached = []
    for arm in MAIN:
        there: list[int] = []
        for step in results.steps(arm):
            prose = results.of("prose", arm=arm, step=step)
            if not prose:
                continue
            share = _mean_share(results, arm, step, common.__contains__)
            tokens = sum(one["tokens"] for one in prose) / len(prose)
            loss = sum(one["loss_tokens"] for one in prose) / len(prose)
            rows.append(
                [
                    f"{labels[arm]} ({_seeds(len(prose))})",
                    str(step),
                    f"{tokens:.0f}",
                    f"{loss:.0f}",
                    share,
                ]
            )
            if share[0] != "–" and float(share.split()[0]) < LEVEL:
                there.append(step)
        if results.steps(arm):
            reached.append(
                f"- {labels[arm]}: "
                + (
                    f"below {LEVEL} in the mean over families at step {there[0]}"
                    if there
                    else f"not below {LEVEL} within {max(results.steps(arm))} steps"
                )
            )
    return [
        f"At distances {', '.join(map(str, sorted(common)))}, which every step was measured at; "
        "means over seeds. Tokens are those that forward and backward ran.",
        "",
        *_table(
            ["arm", "steps", "tokens run", "loss tokens", "mean of the medians", "decisions lost"],
            rows,
        ),
        "",
        *reached,
    ]


def _several(results: Results) -> list[str]:
    arms = [
        ("untrained", 0),
        *((arm, step) for arm in ("exact", "sticky") if (step := results.last(arm))),
    ]
    rows = []
    for name, family in FAMILIES.items():
        for edits, what in (("ab", "A→B"), ("aba", "A→B→A"), ("abc", "A→B→C")):
            cells = []
            wanted = set(results.distances("untrained", 0, "aba"))
            for arm, step in arms:
                found = results.cells(arm, step, name, wanted.__contains__, edits)
                cells.append(_cell(over_seeds(found)) if found else "")
            rows.append([family.label, what, *cells])
    labels = _labels()
    return [
        "The text in between is written in as many equal parts as there were states; the share is "
        "that of the last edit. Trained models saw single edits only. Median, distances "
        f"{', '.join(map(str, results.distances('untrained', 0, 'aba')))} pooled:",
        "",
        *_table(["family", "edits", *(labels[arm] for arm, _ in arms)], rows),
    ]


def _repairs(results: Results) -> list[str]:
    columns = [
        ("sticky", "sticky"),
        ("last8", "last 8 recomputed"),
        ("last32", "last 32"),
        ("last128", "last 128"),
        ("restated", "said again"),
    ]
    rows = []
    for name, family in FAMILIES.items():
        cells = results.cells("untrained", 0, name, _far)
        if not cells or "says" not in cells[0]["odds"]:
            continue
        row = [family.label]
        for condition, _ in columns:
            found = over_seeds(cells, condition)
            row.append(f"{_cell(found)}; lost {found.lost[0]} of {found.lost[1]}")
        says = [bool(x) for one in cells for x in one["right"]["says"]]
        row.append(f"{sum(says)} of {len(says)}")
        rows.append(row)
    return [
        "*Last m*: the last m tokens before the edit are computed anew under the new state (a "
        "reuse policy; the engine does not have it). *Said again*: before the answer stands a "
        "sentence that repeats the slot in its new state, given, not generated: an erratum, or a "
        "chain of thought that went right. A share below 0 means that the answer comes out "
        "stronger than after full recomputation without that sentence. *Says it itself*: items in "
        "which the model, under sticky, prefers the new value to the old one in that sentence. "
        f"Untrained; median; distances of {FAR} and more pooled.",
        "",
        *_table(["family", *(label for _, label in columns), "says it itself"], rows),
    ]


def _transfer(results: Results) -> list[str]:
    out: list[str] = []
    between = set(results.distances("sticky", 30))
    halves = [half for half in HALVES if results.cells(f"sticky@{half}", 30)]
    if halves:
        rows = []
        for name, family in FAMILIES.items():
            row = [family.label, _share(results, "untrained", 0, name, between)]
            for half in halves:
                mark = " (trained)" if name in HALVES[half] else ""
                row.append(_share(results, f"sticky@{half}", 30, name, between) + mark)
            row.append(_share(results, "sticky", 30, name, between))
            rows.append(row)
        out += [
            "Sticky training on one half of the families, 30 steps; stale share, median, distances "
            f"{', '.join(map(str, sorted(between)))} pooled:",
            "",
            *_table(["family", "untrained", *halves, "all families"], rows),
        ]
    single = [name for name in FAMILIES if results.cells(f"sticky@{name}", 30)]
    if single:
        rows = [
            [
                f"**{trained}**",
                *(_brief(results, f"sticky@{trained}", 30, name, between) for name in FAMILIES),
            ]
            for trained in single
        ]
        rows.insert(
            0, ["untrained", *(_brief(results, "untrained", 0, name, between) for name in FAMILIES)]
        )
        out += [
            "",
            "Sticky training on one family (rows), 30 steps, one seed; median stale share of each "
            "family (columns):",
            "",
            *_table(["trained on", *FAMILIES], rows),
        ]
    return out


def _share(results: Results, arm: str, step: int, family: str, at: set[int]) -> str:
    cells = results.cells(arm, step, family, at.__contains__)
    return _cell(over_seeds(cells)) if cells else ""


def _brief(results: Results, arm: str, step: int, family: str, at: set[int]) -> str:
    cells = results.cells(arm, step, family, at.__contains__)
    value = over_seeds(cells).value if cells else math.nan
    return "–" if math.isnan(value) else f"{value:.2f}"


def _prose(results: Results) -> list[str]:
    base = results.of("prose", arm="untrained")
    if not base:
        return []
    labels = _labels()
    rows = [["untrained", "0", f"{base[0]['nll']:.3f}", "", "", "1"]]
    for arm in labels:
        for step in results.steps(arm) if arm != "untrained" else ():
            found = results.of("prose", arm=arm, step=step)
            nll = [one["nll"] for one in found]
            kl = [one["kl"] for one in found]
            if not found:
                continue
            rows.append(
                [
                    labels[arm],
                    str(step),
                    f"{sum(nll) / len(nll):.3f}",
                    f"{sum(nll) / len(nll) - base[0]['nll']:+.3f}",
                    f"{sum(kl) / len(kl):.3f}",
                    str(len(found)),
                ]
            )
    return [
        f"Fixed English prose ({base[0]['prose_tokens']} tokens: an essay, a recipe, a letter, an "
        "explanation, a story), no slots; nats per token, means over seeds. KL from the untrained "
        "model.",
        "",
        *_table(["arm", "steps", "NLL", "against untrained", "KL", "seeds"], rows),
    ]
