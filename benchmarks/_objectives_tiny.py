"""The objectives experiment in the tiny world: its model, its texts, its measures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import fmean
from typing import Any

from benchmarks._adherence_measures import measure
from benchmarks._objectives_arms import Arm, gold_batches, own_batches
from benchmarks._objectives_train import mean_coverage
from benchmarks.adherence import heldout, load
from dynatok_online import attention
from dynatok_online.adherence.drift import drift
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import decode, encode, sample_trajectories
from dynatok_online.trajectory import Trajectory

LEARNING_RATES = {"gold": 1e-3, "corrupted": 1e-3, "policy": 6e-4}
"""Those of `dynatok bench adherence` and of the quickstart."""
STATIC = 48
"""Gold texts without edits, on which drift is measured."""
COVERED, TIMES = 8, 8
"""Tasks that are sampled so many times each, for coverage."""


class TinyWorld:
    """See `_objectives_train.World`."""

    batch = 8
    kernel = "concat"
    cpu = True

    def __init__(self, model: str, tasks: int) -> None:
        self._name = model
        self._tasks = heldout(tasks)
        self._base = self.model()
        attention.prepare(self._base, self.kernel)

    def model(self) -> Any:
        """A fresh copy of the untrained model."""
        return load(self._name)

    def learning_rate(self, arm: Arm) -> float:
        """By the kind of data."""
        return LEARNING_RATES[arm.data]

    def batches(self, arm: Arm, seed: int, model: Any) -> Iterator[list[Trajectory]]:
        """Without end."""
        if arm.data == "policy":
            return own_batches(model, seed, self.batch, arm.group)
        return gold_batches(arm.data, seed, self.batch)

    def state(self, model: Any, seed: int, covered: bool) -> dict[str, Any]:
        """What `model` does now; it is left as it was."""
        implementation, training = model.config._attn_implementation, model.training
        found = measure(model, self._base, self._tasks, reuse="exact", seed=seed)
        if covered:
            again = [task for task in self._tasks[:COVERED] for _ in range(TIMES)]
            written = sample_trajectories(model, again, seed=seed + 1)
            found |= mean_coverage(again, written, TIMES, decode)
        attention.prepare(model, self.kernel)
        model.eval()
        found["drift"] = fmean(drift(model, self._base, static_texts()))
        model.set_attn_implementation(implementation)
        model.train(training)
        return found


def static_texts() -> list[Trajectory]:
    """Gold texts on held-out tasks that are never edited; the same for everybody."""
    tasks = world.tasks("heldout", seed=78, edits=(0, 0))
    return [
        scripted_trajectory(task, encode(world.gold_response(task)), encode)
        for task in islice(tasks, STATIC)
    ]
