"""A row: what one forward and backward runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dynatok_online.arrays import Flags, Int32s, Ints

PER_TARGET = ("targets", "weights", "logprobs", "versions", "trajectory", "response_index")
"""Fields of a row that say something of each target, beside its columns."""


@dataclass(frozen=True)
class Row:
    """What one forward and backward runs: the spans of some passes, and their targets.

    Worked example, one character per token: the prompt "ab" was answered "xy", then (state "c"
    instead of "b") "z". Pass 0 computed "abx", pass 1 reused "a" and computed "cxy":

        input_ids       a  b  x  c  x  y
        position_ids    0  1  2  1  2  3
        bounds          0  1     3        6        spans "a", "bx", "cxy"
        visible         [[1 0 0], [1 1 0], [1 0 1]]
        loss_positions  1  2  5                    after "ab", "abx", "acxy"
        targets         x  y  z
    """

    input_ids: Int32s
    """[N]"""
    position_ids: Int32s
    """[N] the engine's positions."""
    bounds: Ints
    """[S+1] span s holds tokens `bounds[s] .. bounds[s+1]`."""
    visible: Flags
    """[S, S] which spans (second axis) a span sees; itself always."""
    loss_positions: Ints
    """[M] index of the token whose hidden state predicts the target. May repeat: two
    continuations of one text are predicted from one hidden state."""
    targets: Int32s
    """[M] the sampled tokens."""
    weights: npt.NDArray[np.float32]
    """[M]"""
    logprobs: npt.NDArray[np.float32]
    """[M] the actor's log-probability of each target (NaN where not recorded)."""
    versions: Ints
    """[M] weight version that sampled each target (-1 where not recorded)."""
    trajectory: Ints
    """[M] which trajectory of the batch each target belongs to."""
    response_index: Ints
    """[M] and which of its response tokens it is."""
    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """[M] each: what else objectives want to know of every target, by name."""
    above: Int32s = field(default_factory=lambda: np.zeros(0, np.int32))
    """[A] engine positions of tokens that were run before and are seen from here (see `parts`).
    Where there are any, `bounds` and `visible` begin with their spans, and end at A + N."""
    written: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """[N] a number of each response token, by trajectory and index, the same wherever the row runs
    it; -1 for what prompts are made of. [0] unless a batch was planned with `apart`."""
    shifts: Ints | None = None
    """[S, S] how far what a span sees has moved since it was computed, in positions: its keys are
    turned on by as many before the span's queries meet them. None: nothing has moved."""
    ghosts: GhostRow | None = None
    """What is to be run after it, forward only, where a batch was planned with `ghosts`."""

    def of_targets(self, some: Ints) -> dict[str, Any]:
        """What is said of `some` of the targets, but for `loss_positions`, as fields of a row."""
        fields: dict[str, Any] = {name: getattr(self, name)[some] for name in PER_TARGET}
        return fields | {"columns": {name: one[some] for name, one in self.columns.items()}}

    @property
    def tokens(self) -> int:
        """How many tokens the row computes (N)."""
        return len(self.input_ids)

    @property
    def pairs(self) -> int:
        """How many (query, key) pairs its attention computes."""
        first = int(np.searchsorted(self.bounds[:-1], len(self.above)))
        lengths = np.diff(self.bounds)
        own = lengths[first:]
        before = self.visible[first:].astype(np.float64) @ lengths - own
        return int(own @ before + (own * (own + 1) // 2).sum())


@dataclass(frozen=True)
class GhostRow:
    """Targets of a row, predicted once more as if the edit before them had not come.

    In the worked example of `Row`: "z" again, after "ab" and "xy". The last sampled token of pass 0
    has no KV there, so the ghost is "y" at position 3, on the spans "a" and "bx".
    """

    row: Row
    """Its `above` are the tokens of the row that it belongs to. Nothing is trained on it."""
    targets: Ints
    """[T] which target of that row each of its own is."""


def some_shifts(shifts: Ints | None, spans: Ints) -> Ints | None:
    """The shifts between some spans; None where there are none."""
    if shifts is None:
        return None
    some = shifts[np.ix_(spans, spans)]
    return some if some.any() else None


def empty_row() -> Row:
    """A row of one token and no targets: what a rank runs when it has nothing to do."""
    one, none = np.zeros(1, np.int32), np.zeros(0, np.int64)
    return Row(
        input_ids=one,
        position_ids=one,
        bounds=np.array([0, 1]),
        visible=np.ones((1, 1), bool),
        loss_positions=none,
        targets=none.astype(np.int32),
        weights=none.astype(np.float32),
        logprobs=none.astype(np.float32),
        versions=none,
        trajectory=none,
        response_index=none,
    )
