"""Every objective, trained for two steps on the same eight responses, however they are cut up.

Run by tests, alone and as one of several ranks:

    RANK=0 WORLD_SIZE=2 ... python tests/training/table.py OUT.npz
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import product
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import TrainerCallback

from dynatok_online.objectives.written import LOSSES
from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from tests.edited import responses, tiny_model
from tests.training.quiet import QUIET

MASKED = {"name": "contrast", "times": [{"name": "masked", "warm": 0.0, "token": 49}]}
HINDSIGHT = {"name": "dft", "times": ["reward", {"name": "hindsight", "weight": 0.5}]}
OBJECTIVES: list[Any] = [
    *LOSSES,
    {"name": "sft", "times": ["reward", "key", "importance"]},
    ["reward", {"name": "hinge", "scale": 0.1}],
    "context",
    {"name": "contrast", "power": 2},
    "sstoken",
    MASKED,
    HINDSIGHT,
    {"name": "dft", "times": [{"name": "sstoken", "history": "reference"}]},
]

BUDGETS, ACCUMULATED, MEMORY = (256, 16384), (1, 4), ("row", "pass")
CUTS = list(product(BUDGETS, ACCUMULATED, MEMORY))


class Gradients(TrainerCallback):
    """Keeps those of each step."""

    def __init__(self) -> None:
        self.steps: list[np.ndarray] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat(found).numpy().copy())


def trainer(objective: Any, *callbacks: Any, ranks: int = 1, **options: Any) -> DynamicSFTTrainer:
    """Two steps of eight responses in float64."""
    accumulated = options.get("gradient_accumulation_steps", 1)
    settings: dict[str, Any] = {
        **QUIET,
        "output_dir": tempfile.gettempdir(),
        "objective": objective,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "per_device_train_batch_size": 8 // accumulated // ranks,
        "ddp_backend": "gloo" if ranks > 1 else None,
    }
    return DynamicSFTTrainer(
        tiny_model().double(),
        DynamicSFTConfig(**settings | options),
        train_dataset=responses() * 2,
        callbacks=list(callbacks),
    )


def run(objective: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """[2] losses, and [2, P] all gradients."""
    keeps = Gradients()
    made = trainer(objective, keeps, **options)
    made.train()
    losses = [one["loss"] for one in made.state.log_history if "loss" in one]
    return np.array(losses), np.stack(keeps.steps)


def cell(objective: Any, cut: tuple[int, int, str], ranks: int = 1) -> Any:
    """`run`, or why it is refused."""
    budget, accumulated, memory = cut
    try:
        return run(
            objective,
            ranks=ranks,
            max_row_tokens=budget,
            gradient_accumulation_steps=accumulated,
            memory=memory,
        )
    except ValueError as error:
        return str(error)


def main(out: str) -> None:
    """Of every objective and cut, as one of `WORLD_SIZE` ranks."""
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {}
    for i, objective in enumerate(OBJECTIVES):
        for j, cut in enumerate(CUTS):
            got = cell(objective, cut, ranks)
            if isinstance(got, str):
                found[f"{i}.{j}.refused"] = np.array(got)
            else:
                found[f"{i}.{j}.losses"], found[f"{i}.{j}.gradients"] = got
    if os.environ["RANK"] == "0":
        np.savez(out, **found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
