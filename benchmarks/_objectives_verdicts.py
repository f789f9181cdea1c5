"""The rules of the objectives experiment, and what they say. They were written before it ran; that
a verdict of fewer seeds than planned says so, and what "no worse" means, after its first seeds.

Counterfactual credit works where adherence after an edit, at equal loss tokens, is higher by 0.03
or more than without it *and* than with the same credit dealt out at random within each trajectory,
and both 95 % intervals (Student's t over paired seeds) lie above 0. Otherwise it is reported as not
working, and stays off by default.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from benchmarks._objectives_arms import CREDIT
from dynatok_online.adherence.measures import Interval, interval

GAIN = 0.03
SEEDS = 10
"""As many as the experiment is to have."""
CHAT_SEEDS = 3
"""On a chat model."""

Result = dict[str, Any]


def paired(
    results: Sequence[Result], arm: str, other: str, where: str, name: str
) -> Interval | None:
    """`arm` less `other`, over the seeds that both have; None where there is none."""
    values: dict[str, dict[int, float]] = {arm: {}, other: {}}
    for one in results:
        found = one.get(where, {}).get(name)
        if one["arm"] in values and found is not None:
            values[one["arm"]][one["seed"]] = found
    seeds = sorted(values[arm].keys() & values[other].keys())
    return interval([values[arm][s] - values[other][s] for s in seeds]) if seeds else None


def gains(one: Interval | None) -> bool:
    """Whether a difference is what was asked for."""
    return one is not None and one.mean >= GAIN and one.mean - one.half > 0


def said(one: Interval | None) -> str:
    """A difference with its interval and count."""
    if one is None:
        return "not run yet"
    seeds = f"{one.count} seed{'s' if one.count > 1 else ''}"
    return f"{one.signed} ({seeds})"


def credit(
    results: Sequence[Result], planned: int = SEEDS, among: Collection[str] | None = None
) -> list[str]:
    """The verdict on credit, data by data, of so many seeds that are planned. `among`: as in
    `headlines`."""
    lines = []
    for arm, none, control in CREDIT:
        if among is not None and arm not in among:
            continue
        found = [
            paired(results, arm, other, "at_loss_tokens", "adherence_after_edit")
            for other in (none, control)
        ]
        known = [one for one in found if one is not None]
        if len(known) < 2 or min(one.count for one in known) < 2:
            verdict = "undecided"
        else:
            seeds = min(one.count for one in known)
            verdict = "works" if all(map(gains, found)) else "does not work"
            if seeds < planned:
                verdict = verdict.replace("does not work", "not shown to work")
                verdict += f" by {seeds} of {planned} seeds"
        lines.append(
            f"- `{arm}`: **{verdict}**. Against none {said(found[0])}, against the same credit "
            f"at random {said(found[1])}."
        )
    return lines


def too_early(results: Sequence[Result]) -> list[str]:
    """What is to be said where plain fine-tuning on gold texts, which can only teach to follow
    edits, has not done so yet; or nothing."""
    one = paired(results, "gold/sft", "base", "at_loss_tokens", "adherence_after_edit")
    if one is None or one.mean > one.half:
        return []
    return [
        "By then plain fine-tuning on gold texts itself does not follow edits better than the "
        f"untrained model for sure ({said(one)}, each edit with one vote), though it follows what "
        "does not change better. So how objectives follow edits says little here; how far they "
        "drift does.",
        "",
    ]


HEADLINES = (
    ("DFT drifts less than SFT on corrupted data", "corrupted/dft", "corrupted/sft", "drift", -1),
    ("ASFT drifts less than DFT", "corrupted/asft", "corrupted/dft", "drift", -1),
    ("EKSFT drifts less than SFT", "gold/eksft", "gold/sft", "drift", -1),
    (
        "EKSFT follows edits no worse than SFT",
        "gold/eksft",
        "gold/sft",
        "adherence_after_edit",
        0,
    ),
    ("Half fine-tuning drifts less than SFT", "gold/halves", "gold/sft", "drift", -1),
    *(
        (claim, f"{data}/{name}", f"{data}/{other}", "adherence_after_edit", sign)
        for name, method in (("qtuning", "Q-Tuning"), ("tshirt", "T-SHIRT"))
        for data in ("gold", "corrupted")
        for claim, other, sign in (
            (f"{method} follows edits no worse than SFT on all of the {data} texts", "sft", 0),
            (
                f"{method} follows edits better than a quarter of the {data} texts by lot",
                "quarter",
                1,
            ),
        )
    ),
)
"""Published claims that can be checked here in ratio: text, arm, other, measure, wanted sign (0: no
worse)."""


def headlines(results: Sequence[Result], among: Collection[str] | None = None) -> list[str]:
    """Each published claim with the difference that decides it, at equal loss tokens. `among`: the
    arms that are planned; claims about others are left out."""
    lines = []
    for claim, arm, other, name, sign in HEADLINES:
        if among is not None and not {arm, other} <= {*among}:
            continue
        one = paired(results, arm, other, "at_loss_tokens", name)
        if one is None or one.count < 2:
            verdict = "undecided"
        elif sign:
            held = sign * one.mean - one.half > 0
            against = sign * one.mean + one.half < 0
            verdict = "yes" if held else "the opposite" if against else "not seen"
        else:  # by less than what would count as a gain
            held = one.mean - one.half > -GAIN
            against = one.mean + one.half < 0
            verdict = "yes" if held else "no" if against else "not seen"
        lines.append(
            f"- {claim}: **{verdict}**. `{arm}` less `{other}`: {said(one)}{_part(results, arm)}."
        )
    return lines


def _part(results: Sequence[Result], arm: str) -> str:
    """How much of the texts an arm trains on, where it selects."""
    shares = [
        one["selected"]["share_of_tokens"]
        for one in results
        if one["arm"] == arm and "selected" in one
    ]
    return f", with {100 * sum(shares) / len(shares):.0f} % of the tokens" if shares else ""
