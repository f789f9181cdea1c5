"""The arms: which cache states a model is trained on, on values and templates of its own.

Loss falls on the tokens after an edit alone. The text before it then needs no forward under the
old state in exact training, which is run without it: the cheapest that it can be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks._stale_families import FAMILIES, HALVES
from benchmarks._stale_items import (
    CONDITIONS,
    REPAIRS,
    Encoder,
    answer_weights,
    draw_states,
    keep_targets,
    make_scene,
)
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.trajectory import Trajectory

BATCH = 8
LEARNING_RATE = 1e-4
WARMUP = 5
DISTANCES = (25, 50, 100)
"""Tokens of text in between, while training; what is longer is left to the evaluation."""
REFRESHED = 32
"""Tokens that the arm `refresh` computes anew at an edit."""


@dataclass(frozen=True)
class Arm:
    """One way to train, or none."""

    name: str
    label: str
    caches: tuple[str, ...] = ()
    """Cache states that trajectories are drawn from; none: the model stays as it is."""
    families: tuple[str, ...] = tuple(FAMILIES)
    steps: tuple[int, ...] = (10, 30, 100)
    """After how many steps it is measured; after the last of 100, on the whole map."""
    conditions: tuple[str, ...] = CONDITIONS


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("untrained", "untrained", steps=(0,), conditions=CONDITIONS + REPAIRS),
        Arm("sticky", "packed sticky training", ("sticky",)),
        Arm("exact", "packed exact training", ("exact",)),
        Arm("mixture", "half sticky, half exact", ("sticky", "exact")),
        Arm(
            "refresh",
            f"sticky, last {REFRESHED} recomputed",
            (f"last{REFRESHED}",),
            conditions=(*CONDITIONS, f"last{REFRESHED}"),
        ),
        *(
            Arm(f"sticky@{half}", f"sticky, {half} alone", ("sticky",), families, (30,))
            for half, families in HALVES.items()
        ),
        *(
            Arm(f"sticky@{name}", f"sticky, {name} alone", ("sticky",), (name,), (30,))
            for name in FAMILIES
        ),
    )
}


def trajectories(arm: Arm, encode: Encoder, seed: int) -> Iterator[tuple[Trajectory, int]]:
    """Trajectories without end, and how many tokens at the end of each carry loss."""
    rng = random.Random(f"{arm.name.partition('@')[2]} {seed}")
    while True:
        family = FAMILIES[rng.choice(arm.families)]
        at = rng.randrange(len(family.templates("train")))
        scene = make_scene(family, "train", at, rng.choice(DISTANCES), encode)
        old, new = rng.choice(draw_states(scene, "train", "ab", 1000, seed=0))
        # Drawn for every arm, so that arms of one seed see the same texts in the same order.
        coin = rng.randrange(2) % len(arm.caches)
        cache = arm.caches[coin]
        states = (new,) if cache == "exact" else (old, new)
        last = int(cache.removeprefix("last")) if cache.startswith("last") else 1
        cue, answer = scene.template.cue, family.answer(scene.template, new)
        yield (
            scene.trajectory(states, (old,), cue, answer, last),
            len(encode(cue)) + len(encode(answer)),
        )


class Training:
    """One arm and seed: a model, its optimizer, and what was spent so far."""

    def __init__(self, model: Any, arm: Arm, encode: Encoder, seed: int) -> None:
        self._model = model
        self._stream = trajectories(arm, encode, seed)
        on_gpu = model.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=on_gpu
        )
        self.step = self.tokens = self.loss_tokens = 0
        self.loss = float("nan")

    def advance(self) -> None:
        """One optimizer step: the mean loss of all loss tokens of `BATCH` trajectories."""
        drawn = [next(self._stream) for _ in range(BATCH)]
        count = sum(tokens for _, tokens in drawn)
        weights = [
            (answer_weights(one, tokens) / count).astype(np.float32) for one, tokens in drawn
        ]
        # TF32 is fine for gradients; what is reported is measured without it.
        torch.set_float32_matmul_precision("high")
        self._model.train()
        total = 0.0
        for whole in plan_rows([one for one, _ in drawn], weights):
            row = keep_targets(whole)
            given = attention.inputs(row, self._model.device)
            logits = self._model(**given, use_cache=False).logits[0].float()
            targets = torch.as_tensor(row.targets, dtype=torch.long, device=logits.device)
            nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            loss = (nll * torch.as_tensor(row.weights, device=logits.device)).sum()
            loss.backward()
            total += float(loss.detach())
            self.tokens += row.tokens
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.step + 1) / WARMUP)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._model.eval()
        self.step += 1
        self.loss_tokens += count
        self.loss = total
