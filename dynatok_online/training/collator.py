"""Trajectories of one micro batch -> the rows that a model runs.

Takes rows of a dataset (`dynatok_online.trajectory.to_row`) and `Trajectory` objects alike.
Every trajectory is audited: one whose passes contradict what the engine reported is an error,
because training on it would train on a context that nobody saw.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynatok_online.objectives.known import known_columns, response_places
from dynatok_online.objectives.objective import Objective
from dynatok_online.objectives.token_weights import selected_weights, token_weights
from dynatok_online.objectives.written import objective_of
from dynatok_online.rows.plan import Row, plan_ranks, plan_rows
from dynatok_online.spans.audit import audit
from dynatok_online.training.groups import group_keys, pass_columns
from dynatok_online.trajectory import Trajectory, from_row


@dataclass(frozen=True)
class TrajectoryCollator:
    """Plans one micro batch. Returns a dict:

    `rows` (list of `plan.Row`), `loss_tokens` (their targets), `tokens` (what they compute),
    `truncated_tokens` (what one truncated pass per prompt state would), `plan_seconds`; and where
    the objective needs groups, `groups` and `scores` of all passes (see `groups`).
    """

    strategy: str = "packed"
    max_row_tokens: int = 16384
    objective: Objective = field(default_factory=lambda: objective_of("sft"))
    thought: tuple[int, int] | None = None
    """Tokens that open and close a thought, where thoughts do not count."""

    def __call__(self, items: Sequence[Trajectory | Mapping[str, Any]]) -> dict[str, Any]:
        """Raises ValueError naming the trajectory that cannot be trained on, and why."""
        (batch,) = self.plan(items, ranks=1)
        return batch

    def plan(
        self, items: Sequence[Trajectory | Mapping[str, Any]], ranks: int
    ) -> list[dict[str, Any]]:
        """One batch for every rank, of as many rows. What is not about rows is in the first."""
        began = time.perf_counter()
        trajectories = [one if isinstance(one, Trajectory) else from_row(one) for one in items]
        for one in trajectories:
            if mismatches := audit(one):
                raise ValueError(
                    f"trajectory {one.trajectory_id} fails the audit: {mismatches[0]}; leave it "
                    "out, or correct num_cached_tokens and reuse of its passes"
                )
            if "recorded" in self.objective.needs and not np.isfinite(one.logprobs).all():
                name = self.objective.of_need("recorded")
                raise ValueError(
                    f"objective {name} needs the log-probabilities that the actor recorded, and "
                    f"trajectory {one.trajectory_id} lacks some"
                )
        weights = [
            token_weights(one, thought=self.thought) * selected_weights(one) for one in trajectories
        ]
        truncated = sum(truncated_tokens(one) for one in trajectories)
        if (hindsight := self.objective.hindsight) is not None:
            earlier = [
                made
                for one, weight in zip(trajectories, weights, strict=True)
                for made in hindsight.targets(one, weight)
            ]
            trajectories += earlier
            weights += [one.weights for one in earlier]
        columns = [known_columns(one) | self.objective.columns(one) for one in trajectories]
        if "attention" in self.objective.needs:
            places = map(response_places, trajectories)
            columns = [one | more for one, more in zip(columns, places, strict=True)]
        grouped = "groups" in self.objective.needs
        if grouped:
            passes = pass_columns(trajectories)
            columns = [one | more for one, more in zip(columns, passes, strict=True)]
        planned = plan_ranks(
            trajectories,
            weights,
            self.max_row_tokens,
            strategy=self.strategy,
            ranks=ranks,
            columns=columns,
            ghosts="context" in self.objective.needs,
            apart=self.objective.masked is not None,
        )
        for _, name in self.objective.whole():
            _check_whole(planned, trajectories, f"objective {name}")
        seconds = time.perf_counter() - began
        batches: list[dict[str, Any]] = [
            {
                "rows": rows,
                "loss_tokens": sum(len(row.targets) for row in rows),
                "tokens": sum(row.tokens for row in rows),
                "truncated_tokens": truncated if rank == 0 else 0,
                "plan_seconds": seconds if rank == 0 else 0.0,
            }
            for rank, rows in enumerate(planned)
        ]
        if grouped:
            batches[0]["groups"], batches[0]["scores"] = group_keys(trajectories)
        return batches


def _check_whole(
    planned: Sequence[Sequence[Row]], trajectories: Sequence[Trajectory], what: str
) -> None:
    """Raise ValueError for a trajectory that several rows hold parts of."""
    for rank in planned:
        for row in rank:
            at, counts = np.unique(row.trajectory, return_counts=True)
            for index, count in zip(at.tolist(), counts.tolist(), strict=True):
                one = trajectories[index]
                if count < len(one.response):
                    (alone,) = plan_rows([one], max_tokens=sys.maxsize)
                    raise ValueError(
                        f"{what} compares the tokens of a whole trajectory, and rows as short as "
                        f"max_row_tokens split trajectory {one.trajectory_id}; raise it to "
                        f"{alone.tokens} at least, or leave longer trajectories out"
                    )


def truncated_tokens(trajectory: Trajectory) -> int:
    """What one truncated pass per prompt state computes: nothing is shared."""
    return sum(
        trajectory.kv_length(k) for k, one in enumerate(trajectory.passes) if one.stop > one.start
    )
