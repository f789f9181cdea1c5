"""Losses and what multiplies them, added up: what `objective` in a configuration becomes.

    loss of a target = weight * sum over terms of scale * loss * product of the term's factors

`weight` is 0 for thoughts that do not count (`skip_thoughts`), and 1 else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.hindsight import Hindsight
from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.masked import Masked
from dynatok_online.objectives.targets import NEEDS, Factor, Need, Targets, TokenObjective
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Column = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Term:
    """One loss, and what multiplies it."""

    name: str
    loss: TokenObjective
    factors: tuple[tuple[str, Factor], ...] = ()
    """By name."""
    scale: float = 1.0


@dataclass(frozen=True)
class Objective:
    """The sum of its terms; called as a `TokenObjective`."""

    terms: tuple[Term, ...]

    @property
    def needs(self) -> frozenset[Need]:
        """What any of them needs."""
        return frozenset(need for _, one in self._parts() for need in one.needs)

    @property
    def watches(self) -> tuple[str, ...]:
        """What any of them watches."""
        means = (self._key(i, n) for i, n, one in self._factors() if one.mean_one)
        return (*(name for _, one in self._parts() for name in one.watches), *means)

    def of_need(self, need: Need) -> str:
        """The name of what needs it, for a message."""
        return next(name for name, one in self._parts() if need in one.needs)

    def check(self, brought: Sequence[Need]) -> None:
        """Raise ValueError for what is needed and not among what is `brought`."""
        if self.masked is not None and "recorded" in self.needs:
            raise ValueError(
                f"objective {self.of_need('recorded')} compares with what the actor recorded, "
                "which saw all inputs, and masked hides some; leave one of them out"
            )
        if self.hindsight is not None:
            for need in ("recorded", "groups", "attention"):
                if need in self.needs:
                    raise ValueError(
                        f"objective {self.of_need(need)} needs {_MISSING[need].partition(',')[0]}, "
                        "which earlier text has none of under a later state; leave it or hindsight "
                        "out"
                    )
            if self.masked is not None:
                raise ValueError(
                    "objective masked hides what goes on, and hindsight takes the same text for "
                    "several responses; leave one of them out"
                )
        for need in NEEDS:
            if need in self.needs and need not in brought:
                raise ValueError(f"objective {self.of_need(need)} needs {_MISSING[need]}")

    def columns(self, trajectory: Trajectory) -> dict[str, Column]:
        """[R] each: what its factors know of a trajectory before anything runs."""
        return {
            self._key(i, name): factor.weights(trajectory)
            for i, name, factor in self._factors()
            if factor.static
        }

    def whole(self) -> dict[tuple[str, str], Factor]:
        """Factors that compare the tokens of a trajectory, by the column that they become, and by
        name."""
        return {(self._key(i, name), name): one for i, name, one in self._factors() if one.whole}

    @property
    def masked(self) -> Masked | None:
        """What hides inputs, if anything does."""
        return next((one for _, _, one in self._factors() if isinstance(one, Masked)), None)

    @property
    def hindsight(self) -> Hindsight | None:
        """What makes targets of earlier text, if anything does. All terms see them."""
        return next((one for _, _, one in self._factors() if isinstance(one, Hindsight)), None)

    def factor(self, t: Targets, past: Lagged, at: int = 0) -> Tensor | None:
        """[m] what multiplies the loss of term `at`; None: nothing does."""
        out = None
        for i, name, one in self._factors():
            if i != at:
                continue
            key = self._key(i, name)
            value = t.columns[key] if one.static or one.whole else one(t, past)
            if one.mean_one:
                past.watch(key, value)
                value = value / (past.mean(key) or 1.0)
            out = value if out is None else out * value
        return out

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m] loss of each target, weights included."""
        return self.weighted(t, past)[0]

    def weighted(self, t: Targets, past: Lagged) -> tuple[Tensor, Tensor]:
        """[m] loss of each target, and [m] what multiplied that of the first term."""
        weight = t.columns["weight"]
        total: Any = None
        first = weight
        for i, term in enumerate(self.terms):
            factor = self.factor(t, past, i)
            counts = weight if factor is None else weight * factor
            first = counts if i == 0 else first
            one = term.loss(t, past)
            one = one * (counts * term.scale).to(one.dtype)
            total = one if total is None else total + one
        return total, first

    def _factors(self) -> list[tuple[int, str, Factor]]:
        return [(i, name, one) for i, term in enumerate(self.terms) for name, one in term.factors]

    def _parts(self) -> list[tuple[str, Any]]:
        factors = [(name, one) for _, name, one in self._factors()]
        return [*((term.name, term.loss) for term in self.terms), *factors]

    def _key(self, term: int, name: str) -> str:
        return f"{term}.{name}"


_MISSING: dict[Need, str] = {
    "reference": "a reference model, which is named in `reference`: start, adapter, or a path",
    "recorded": "the log-probabilities that the actor recorded, which these trajectories lack",
    "context": (
        "the log-probability of tokens under the prompt before the last edit, which only "
        "strategy packed computes, and not under FSDP"
    ),
    "attention": "the attention on the prompt, which is not computed under FSDP",
    "groups": "several responses to one task in every step, which there are none of here",
    "verdicts": "earlier text under later states, which only strategy packed computes",
}
