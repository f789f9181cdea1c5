"""The arms of the objectives experiment, the data that they train on, and what is run first.

Every arm of a seed begins with the same weights and, on gold, sees the same texts in the same
order. On policy each samples its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from benchmarks._objectives_select import Method
from dynatok_online.adherence.scoring import judged
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import decode, encode, sample_trajectories
from dynatok_online.trajectory import Trajectory

BLOCK_SIZE = 16
CORRUPTED = 0.2
"""Share of the edits that a corrupted writer does not follow."""

DATA = {
    "gold": "gold texts",
    "corrupted": "gold texts whose writer overlooks one edit in five",
    "policy": "the model's own samples, times reward to the power of 3",
}
"""In the order of the report."""


@dataclass(frozen=True)
class Arm:
    """One objective on one kind of data."""

    data: str
    name: str
    objective: Any
    """As a configuration writes it."""
    shuffled: bool = False
    """Control: each trajectory's differences of log-probabilities are dealt out anew at random."""
    halves: int = 0
    """Half fine-tuning: optimizer steps of a round; 0: none."""
    select: Method | None = None
    """What chooses among the texts beforehand; None: all."""
    group: int = 1
    """On policy: responses to one task, whose scores are compared."""

    @property
    def key(self) -> str:
        """What a raw result calls it."""
        return f"{self.data}/{self.name}"


LOSSES = ("dft", "asft", "rollout", "eksft", "sstoken", "key", "masked")
"""Beside `sft`, on gold and corrupted gold."""


def arms() -> list[Arm]:
    """All arms: those that decide about credit first, then data by data."""
    reward = {"name": "reward", "power": 3}
    plain = [Arm(data, "sft", "sft") for data in ("gold", "corrupted")]
    credit = [
        Arm(data, name, "context", shuffled)
        for data in ("gold", "corrupted")
        for name, shuffled in (("context", False), ("context, shuffled", True))
    ]
    policy = [
        Arm("policy", "sft", reward),
        Arm("policy", "contrast", {"name": "contrast", "power": 3}),
        Arm("policy", "contrast, shuffled", {"name": "contrast", "power": 3}, True),
    ]
    past = {"name": "sstoken", "history": "reference"}  # nobody has sampled gold
    losses = [
        Arm(data, name, past if name == "sstoken" else name)
        for data in ("gold", "corrupted")
        for name in LOSSES
    ]
    methods: dict[str, Method] = {"qtuning": "qtuning", "tshirt": "tshirt", "quarter": "random"}
    selected = [
        Arm(data, name, "sft", select=method)
        for data in ("gold", "corrupted")
        for name, method in methods.items()
    ]
    halves = [Arm(data, "halves", "sft", halves=5) for data in ("gold", "corrupted")]
    rewarded = [
        Arm("policy", name, {"name": name, "times": [reward]})
        for name in ("dft", "asft", "eksft", "sstoken")
    ]
    grouped = [Arm("policy", name, name, group=4) for name in ("grpo", "decoupled", "hapo")]
    # Gold obeys the state that it was written under, and so none of those that come after it.
    hindsight = [
        Arm("corrupted", "hindsight", "hindsight"),
        Arm("policy", "hindsight", {"name": "hindsight", "times": [reward]}),
    ]
    unlearned = [reward, {"name": "hinge", "scale": 0.1}]
    # On corrupted gold a verifier sees what was overlooked: what credit has to find without one.
    verified = [
        Arm("corrupted", "reward", reward),
        Arm("corrupted", "hinge", unlearned),
        Arm("policy", "hinge", unlearned),
    ]
    return [
        *(one for one in plain + credit if one.data == "gold"),
        *(one for one in plain + credit if one.data == "corrupted"),
        *policy,
        *losses,
        *halves,
        *selected,
        *rewarded,
        *grouped,
        *hindsight,
        *verified,
    ]


CHAT = (
    "corrupted/sft",
    "corrupted/context",
    "corrupted/context, shuffled",
    "gold/sft",
    "gold/context",
    "gold/context, shuffled",
    "corrupted/dft",
    "gold/dft",
    "gold/asft",
    "gold/eksft",
    "gold/halves",
    "corrupted/asft",
)
"""What is run on a chat model unless others are named, in this order; on policy none can be."""

CREDIT = (
    ("gold/context", "gold/sft", "gold/context, shuffled"),
    ("corrupted/context", "corrupted/sft", "corrupted/context, shuffled"),
    ("policy/contrast", "policy/sft", "policy/contrast, shuffled"),
)
"""Credit, against none, against the same weights dealt out at random."""


def gold_batches(data: str, seed: int, batch: int) -> Iterator[list[Trajectory]]:
    """Gold texts without end; the same for every arm of a seed."""
    rng = random.Random(f"{data}/{seed}")
    tasks = world.tasks("train", seed=10_000 + seed)
    while True:
        yield [_written(next(tasks), data, rng) for _ in range(batch)]


def _written(task: Task, data: str, rng: random.Random) -> Trajectory:
    followed = tuple(one for one in task.edits if data != "corrupted" or rng.random() >= CORRUPTED)
    text = world.gold_response(msgspec.structs.replace(task, edits=followed))
    one = scripted_trajectory(task, encode(text), encode, block_size=BLOCK_SIZE)
    return scored(task, one)


def own_batches(model: Any, seed: int, batch: int, group: int = 1) -> Iterator[list[Trajectory]]:
    """What `model` writes with the weights that it has when it is asked; `group` to each task."""
    tasks = world.tasks("train", seed=20_000 + seed)
    number = 0
    while True:
        these = [one for one in islice(tasks, batch // group) for _ in range(group)]
        implementation, training = model.config._attn_implementation, model.training
        model.set_attn_implementation("sdpa")
        model.eval()
        number += 1
        found = sample_trajectories(
            model, these, seed=seed * 100_003 + number, block_size=BLOCK_SIZE
        )
        model.set_attn_implementation(implementation)
        model.train(training)
        yield [scored(*pair) for pair in zip(these, found, strict=True)]


def scored(task: Task, one: Trajectory) -> Trajectory:
    """With the verifiers' score of every pass."""
    return judged(one, [task.states_at(p.start) for p in one.passes], decode)


def shuffled_within(delta: np.ndarray, trajectory: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """[M] known values dealt out anew among those of the same trajectory; NaN stays."""
    rng = np.random.default_rng(seed)
    out = delta.copy()
    for one in np.unique(trajectory):
        at = np.flatnonzero((trajectory == one) & np.isfinite(delta))
        out[at] = delta[rng.permutation(at)]
    return out
