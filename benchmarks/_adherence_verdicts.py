"""What was expected of the adherence experiment, and the numbers that decide it."""

from __future__ import annotations

import math

from benchmarks._adherence_figure import COLORS
from benchmarks._adherence_tables import Result, deviation, training_times


def verdicts(by_arm: dict[str, list[Result]]) -> list[str]:
    """Each expectation with the numbers that decide it."""

    def mean(arm: str, where: str, name: str) -> float:
        values = [one[where][name] for one in by_arm.get(arm, []) if where in one]
        return sum(values) / len(values) if values else math.nan

    def took(arm: str) -> float:
        values = training_times(by_arm.get(arm, []))
        return sum(values) / len(values) if values else math.nan

    share = mean("g_sticky", "at_seconds", "adherence_after_edit") / mean(
        "d_exact", "at_seconds", "adherence_after_edit"
    )
    cost = mean("g_sticky", "at_seconds", "extra_tokens_per_edit") / mean(
        "d_exact", "at_seconds", "extra_tokens_per_edit"
    )
    base, exact = (mean("a_base", how, "adherence_after_edit") for how in ("sticky", "exact"))
    sticky = mean("d_exact", "sticky", "adherence_after_edit")
    rough = {arm: deviation(by_arm.get(arm, [])) for arm in (*COLORS, "b_one_state_tokens")}
    found = [
        (
            "(g) reaches at least 0.95 of (d)'s adherence at less than a third of its recomputed "
            "tokens",
            share >= 0.95 and cost < 1 / 3,
            f"{share:.3f} of the adherence at {cost:.2f} of the tokens",
        ),
        (
            "(e) fails",
            base < 0.75,
            f"{base:.3f}; but the base model does not follow edits with exact generation either "
            f"({exact:.3f}), so here sticky generation is not what it fails at",
        ),
        (
            "(f) needs sticky training",
            sticky < 0.9 * mean("g_sticky", "at_seconds", "adherence_after_edit"),
            f"trained exactly and generated stickily it reaches {sticky:.3f}",
        ),
        (
            "(b), one state per visit, needs at least twice the time of (d)",
            took("b_one_state") >= 2 * took("d_exact"),
            f"{took('b_one_state') / took('d_exact'):.2f} times at as many trajectories a step; "
            f"{took('b_one_state') / took('d_exact_3'):.2f} times at about the same number of loss "
            "tokens a step",
        ),
        (
            "(b), all states, needs at least twice the time of (d)",
            took("b_all_states") >= 2 * took("d_exact"),
            f"{took('b_all_states') / took('d_exact'):.2f} times",
        ),
    ]
    found.append(
        (
            "The per-state mean explains the instability of (b), one state per visit",
            rough["b_one_state_tokens"] < 0.5 * rough["b_one_state"],
            f"deviation over seeds {rough['b_one_state']:.3f}, with the global token count "
            f"{rough['b_one_state_tokens']:.3f}, (d) {rough['d_exact']:.3f}",
        )
    )
    return [f"- {claim}: **{'yes' if held else 'no'}**. {how}." for claim, held, how in found]
