"""Hindsight: text that was written before an edit and satisfies the new state counts under it, too.

    loss of y_i = -log p(y_i | prompt after the edit, y_<i)     for earlier text worth `threshold`

beside the loss of each token under the state that it was written under, and counted like any other
target: the divisor grows by them. An actor, which has the verifiers, says what earlier text is
worth (`Pass.earlier`). `threshold` 1: what satisfies every requirement wholly; `weight` 1.

A pass after an edit computes all earlier text once more, under its own prompt: so each stretch
becomes a response of its own that was sampled from [prompt after the edit, text before it], its
spans are those of that pass, and not one token is computed for it (`spans/merging.py`). That holds
where the response ends the prompt, and where reuse is exact: a sticky pass keeps the KV that
earlier text had under the old state, and has none under the new one. Both are refused. So are
objectives that look at what an actor recorded, at groups or at attention: nobody sampled these
targets so.

By hand: "ab" was written under state 0, "c" under state 1, and "b" satisfies that one: the loss is
-(log p(a|0) + log p(b|0,a) + log p(c|1,ab) + log p(b|1,a)) / 4.

The mirror of credit by ghosts (`spans/ghosts.py`); the idea is that of hindsight experience replay
(Andrychowicz et al., 2017, arXiv 1707.01495), where an outcome is taken for what was asked for.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.targets import Factor, Need
from dynatok_online.trajectory import RESPONSE, Pass, Selected, Trajectory

NAME = "hindsight"


class Hindsight(Factor, frozen=True):
    """Counts 1; and makes targets of earlier text."""

    needs: ClassVar[frozenset[Need]] = frozenset({"verdicts"})
    static: ClassVar[bool] = True

    threshold: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {self.threshold}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, got {self.weight}")

    def weights(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """[R]"""
        return np.ones(len(trajectory.response), np.float32)

    def targets(self, trajectory: Trajectory, weights: npt.NDArray[np.float32]) -> list[Selected]:
        """Earlier text of `trajectory` as responses under later states; `weights`: [R] what its
        tokens count. Raises ValueError where nobody judged, or the text is not computed."""
        out = []
        where = f"objective hindsight: trajectory {trajectory.trajectory_id}"
        if trajectory.policy != "exact":
            raise ValueError(
                f"{where} was written with reuse {trajectory.policy}, which computes no earlier "
                "text under a new state; use reuse: exact, or leave hindsight out"
            )
        for k, one in enumerate(trajectory.passes):
            if not one.earlier:
                if one.earlier == ():
                    continue
                raise ValueError(
                    f"{where}, pass {k} has no verdict on the text before it; record it with "
                    "actors of this release, or leave hindsight out"
                )
            place = one.layout.index(RESPONSE)
            if any(len(trajectory.pieces[i]) for i in one.layout[place + 1 :]):
                raise ValueError(
                    f"{where}: its prompt goes on behind the response, so pass {k} computes no "
                    "earlier text under its states; put the response last, or leave hindsight out"
                )
            out += self._of_pass(trajectory, k, one, weights)
        return out

    def _of_pass(
        self, trajectory: Trajectory, k: int, later: Pass, weights: npt.NDArray[np.float32]
    ) -> list[Selected]:
        prompt = [trajectory.pieces[i] for i in later.layout if i != RESPONSE]
        out = []
        for piece in later.earlier or ():
            if piece.score < self.threshold:
                continue
            start, stop = piece.start, piece.stop
            made = Pass(
                layout=(0, RESPONSE),
                states=later.states,
                start=0,
                stop=stop - start,
                num_cached_tokens=0,
                scores={NAME: piece.score},
            )
            out.append(
                Selected(
                    trajectory_id=f"{trajectory.trajectory_id}/{NAME}-{k}-{start}",
                    pieces=(np.concatenate([*prompt, trajectory.response[:start]]),),
                    response=trajectory.response[start:stop],
                    logprobs=np.full(stop - start, np.nan, np.float32),
                    passes=(made,),
                    block_size=trajectory.block_size,
                    weights=weights[start:stop] * np.float32(self.weight),
                )
            )
        return out
