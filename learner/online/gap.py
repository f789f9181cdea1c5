"""`logprob_gap`: the actor's log-probabilities against the learner's, at equal weights.

The weights that were published as version v are those in training until the next optimizer step
moves them. What actors have sampled with v until then is scored by the model in training itself
just before that step: of the trajectories with most tokens of v, among those that are trained on
and those that wait, the last pass that v sampled, on all that edits and reuse left below it. The
gap is the mean absolute difference over these tokens.
It is near zero (float32: below 1e-4) exactly when the learner rebuilds the context that the actor
sampled from: the right weights, the right splits, the right positions. Anything else shows here
first. A version that nothing came of in time is counted as missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dynatok_online.rows.row import Row
from dynatok_online.trajectory import Trajectory
from learner.online.scorer import Flags, Scorer


class Gap(NamedTuple):
    """One comparison."""

    version: int
    mean: float
    """Mean absolute difference over the compared tokens, in nats."""
    largest: float
    tokens: int
    kl: float = 0.0
    """KL divergence of the trainer from the actor, in nats per token, from the tokens sampled:
    mean of r - 1 - log r, r the ratio of the probabilities (Schulman's k3)."""


class GapProbe:
    """Compares each version once, or counts it as missed."""

    def __init__(
        self,
        scorer: Scorer,
        trajectories: int,
        together: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """`trajectories`: most that are compared per version; 0: none. `together` is told how many
        rows are about to be scored, 0 included, where a version is in training."""
        self._scorer = scorer
        self._count = trajectories
        self._together = together
        self._version: int | None = None
        self.worst: Gap | None = None
        """The largest gap so far."""
        self.compared = 0
        """Versions compared."""
        self.seconds = 0.0
        """Time spent comparing."""
        self.missed = 0
        """Versions of which nothing had come when the weights moved on."""

    def published(self, version: int) -> None:
        """The weights in training are `version`."""
        self._version = version if self._count else None

    @property
    def note(self) -> str:
        """What to say at the end where no version was compared; empty: some were."""
        if self.compared or not self._count:
            return ""
        return (
            f"logprob_gap was never measured: of none of {self.missed} versions anything had come "
            "before the weights moved on, so nothing says that actors and learner compute the "
            "same; shorter responses, a larger learner.trajectories_per_step, or "
            "learner.max_policy_lag 0 bring something in time"
        )

    @property
    def due(self) -> bool:
        """Whether the weights in training are a version that was not compared."""
        return self._version is not None

    def before_step(self, come: Sequence[Trajectory]) -> Gap | None:
        """The weights are about to move; `come`: all that has come of actors and is at hand."""
        if self._version is None:
            return None
        began = time.perf_counter()
        version, self._version = self._version, None
        counts = [int(_sampled_by(version, one).sum()) for one in come]
        most = np.argsort(counts, kind="stable")[::-1][: self._count]
        chosen = [come[i] for i in most if counts[i]]
        rows = self._scorer.plan(
            chosen,
            [_of_last_pass(version, one) for one in chosen],
            [_sampled_by(version, one) for one in chosen],
        )
        self._together(len(rows))
        if not chosen:
            self.missed += 1
            return None
        gap = _gap(version, rows, [self._scorer.row(row) for row in rows])
        self.compared += 1
        if self.worst is None or not gap.mean <= self.worst.mean:  # a NaN is the worst of all
            self.worst = gap
        self.seconds += time.perf_counter() - began
        return gap


def _sampled_by(version: int, one: Trajectory) -> Flags:
    """[R] its tokens. Not those sampled from KV of two versions, which nothing equals."""
    return (one.versions() == version) & one.rebuildable()


def _of_last_pass(version: int, one: Trajectory) -> Flags:
    """[R] those of them that its last pass sampled which has any."""
    tokens = _sampled_by(version, one)
    last = next(p for p in reversed(one.passes) if tokens[p.start : p.stop].any())
    out = np.zeros_like(tokens)
    out[last.start : last.stop] = tokens[last.start : last.stop]
    return out


def _gap(version: int, rows: Sequence[Row], scored: Sequence[np.ndarray]) -> Gap:
    every = np.concatenate(
        [values.astype(np.float64) - row.logprobs for row, values in zip(rows, scored, strict=True)]
    )
    size = np.abs(every)
    kl = float(np.mean(np.expm1(every) - every))
    return Gap(version, float(size.mean()), float(size.max()), len(every), kl)
