"""From seconds to rows: what edits cost, beside what they must at least cost.

A prefill is timed on short and on long prompts in the same run; two equations give the seconds of
a computed token and of an attended pair, and so the bound of every mode.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dynatok_online.trajectory import RESPONSE, Trajectory


@dataclass(frozen=True)
class Shape:
    """Tokens of every prompt and response."""

    prefix: int = 256
    slot: int = 32
    response: int = 512


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    model: str
    sessions: int
    states: int
    mode: str
    tok_s: float
    """Generated tokens per second, all sessions together."""
    ratio_to_static: float
    edit_ms_p50: float | None
    """From a surprise edit to the first new token."""
    edit_ms_p95: float | None
    reused_tokens: int
    """Per session."""
    computed_tokens: int
    """Per session: positions whose KV was computed."""
    bound_ratio: float
    """What the ratio would be if recomputed tokens cost what a prefill costs, and edits nothing."""
    step_ms: float
    """One decode step of the static run."""
    prefill_ms: float
    """The prefill that one edit needs, alone."""
    ratios: tuple[float, ...] = ()
    """Speed against static, round by round."""
    edits: int = 0
    """Surprise edits behind `edit_ms_p50` and `edit_ms_p95`."""


@dataclass
class Timed:
    """One mode over the rounds."""

    seconds: list[float] = field(default_factory=list)
    reused: int = 0
    computed: int = 0
    pairs: int = 0
    """Positions that the computed tokens attended to."""
    edits: list[float] = field(default_factory=list)
    preemptions: int = 0


def costs(short: Timed, long: Timed) -> tuple[float, float]:
    """Seconds for each token of all sessions, and for each pair."""
    tokens, pairs = np.linalg.solve(
        [[short.computed, short.pairs], [long.computed, long.pairs]],
        [statistics.median(short.seconds), statistics.median(long.seconds)],
    )
    if pairs < 0:  # too short to tell
        return statistics.median(long.seconds) / long.computed, 0.0
    return float(tokens), float(pairs)


def row_of(
    model: str,
    sessions: int,
    arm: tuple[int, str],
    one: Timed,
    static: Timed,
    shape: Shape,
    costs: tuple[float, float],
) -> Row:
    states, mode = arm
    base = statistics.median(static.seconds)
    ratios = [a / b for a, b in zip(static.seconds, one.seconds, strict=True)]
    token, pair = costs
    extra = token * (one.computed - static.computed) + pair * (one.pairs - static.pairs)
    prompt = shape.prefix + shape.slot + 1
    first = token * prompt + pair * triangle(prompt)
    return Row(
        model=model,
        sessions=sessions,
        states=states,
        mode=mode,
        tok_s=round(sessions * shape.response / statistics.median(one.seconds), 1),
        ratio_to_static=round(statistics.median(ratios), 3),
        edit_ms_p50=_quantile(one.edits, 0.5),
        edit_ms_p95=_quantile(one.edits, 0.95),
        reused_tokens=one.reused,
        computed_tokens=one.computed,
        bound_ratio=round(base / (base + extra), 3),
        step_ms=round(1000 * (base - first) / shape.response, 2),
        prefill_ms=round(1000 * extra / sessions / (states - 1), 2) if states > 1 else 0.0,
        ratios=tuple(round(ratio, 3) for ratio in ratios),
        edits=len(one.edits),
    )


def pairs(trajectory: Trajectory) -> int:
    """Positions that the computed tokens attended to, themselves included."""
    total = 0
    for one in trajectory.passes:
        fed = sum(
            one.start if piece == RESPONSE else len(trajectory.pieces[piece])
            for piece in one.layout
        )
        total += triangle(fed + one.stop - one.start - 1)
        total -= sum(triangle(run.stop) - triangle(run.start) for run in one.reuse)
    return total


def triangle(count: int) -> int:
    return count * (count + 1) // 2


def _quantile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 2) if values else None
