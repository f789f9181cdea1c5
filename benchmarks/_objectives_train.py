"""One run of the objectives experiment: the trainer itself, stopped twice to be measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks._adherence_measures import measure
from benchmarks._objectives_arms import Arm, gold_batches, own_batches, shuffled_within
from benchmarks.adherence import heldout, load
from dynatok_online import attention
from dynatok_online.adherence.coverage import coverage, ending
from dynatok_online.adherence.drift import drift
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import decode, encode, sample_trajectories
from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from dynatok_online.trajectory import Trajectory

BATCH = 8
WARMUP = 10
LEARNING_RATES = {"gold": 1e-3, "corrupted": 1e-3, "policy": 6e-4}
"""Those of `dynatok bench adherence` and of the quickstart."""
STATIC = 48
"""Gold texts without edits, on which drift is measured."""
COVERED, TIMES = 8, 8
"""Tasks that are sampled so many times each, for coverage."""


@dataclass
class Budgets(TrainerCallback):
    """Measures when each budget is spent, and stops when both are. Time is CPU time of this
    process, without that of measuring and of making data; 0 seconds: no such budget."""

    seconds: float
    loss_tokens: int
    measured: Any
    found: dict[str, Any] = field(default_factory=dict)
    aside: float = 0.0
    """CPU seconds that do not count."""
    used: int = 0
    """Loss tokens."""
    _began: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self._began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at both budgets."""
        spent = time.process_time() - self._began - self.aside
        facts = {"seconds": spent, "loss_tokens": self.used, "step": state.global_step}
        began = time.process_time()
        for name, have, budget in (
            ("at_loss_tokens", self.used, self.loss_tokens),
            ("at_seconds", spent, self.seconds),
        ):
            if budget and name not in self.found and have >= budget:
                # The first point measures coverage, too: equal loss tokens are what compares.
                self.found[name] = {**facts, **self.measured(name == "at_loss_tokens")}
        self.aside += time.process_time() - began
        if len(self.found) == (2 if self.seconds else 1):
            control.should_training_stop = True


class CountingTrainer(DynamicSFTTrainer):
    """Tells `budgets` what each step uses."""

    budgets: Budgets

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Count the loss tokens of a step."""
        self.budgets.used += inputs["loss_tokens"]
        return super().training_step(model, inputs, num_items_in_batch)


class ShuffledTrainer(CountingTrainer):
    """The control: every token counts as if another token's difference were its own, dealt out at
    random within each trajectory. It computes more than the real one (a forward to know the
    differences), so only its figures at equal loss tokens compare."""

    @property
    def _shares(self) -> bool:
        return False

    def context(self, model: Any, row: Any) -> dict[str, np.ndarray]:
        """The column of ghosts, so that each difference is another token's."""
        before = super().context(model, row)["context"]
        now = _logprobs(model, row)
        seed = [self.args.seed, self.state.global_step]
        mixed = shuffled_within(now - before, row.trajectory, seed)
        return {"context": (now - mixed).astype(np.float32)}


def _logprobs(model: Any, row: Any) -> np.ndarray:
    with torch.no_grad():
        logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0].float()
    targets = torch.as_tensor(row.targets, dtype=torch.long)
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()


def run_arm(
    arm: Arm, seed: int, *, model: str, seconds: float, loss_tokens: int, tasks: int
) -> dict[str, Any]:
    """Train one arm until both budgets are spent: its measures at each."""
    torch.manual_seed(seed)
    trained, base, asked = load(model), load(model), heldout(tasks)
    attention.prepare(base, "concat")
    budgets = Budgets(
        seconds, loss_tokens, lambda covered: state(trained, base, asked, seed, covered)
    )
    if arm.data == "policy":
        made: Iterator[list[Trajectory]] = own_batches(trained, seed, BATCH, arm.group)
    else:
        made = gold_batches(arm.data, seed, BATCH)
    with tempfile.TemporaryDirectory() as folder:
        kind = ShuffledTrainer if arm.shuffled else CountingTrainer
        trainer = kind(
            trained,
            DynamicSFTConfig(
                output_dir=folder,
                objective=arm.objective,
                max_steps=100_000,
                per_device_train_batch_size=BATCH,
                max_row_tokens=8192,
                learning_rate=LEARNING_RATES[arm.data],
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=WARMUP,
                adam_beta2=0.98,
                weight_decay=0.0,
                max_grad_norm=1.0,
                halves=arm.halves,
                seed=seed,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                gradient_checkpointing=False,
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=_one_by_one(made, budgets),
        )
        trainer.budgets = budgets
        trainer.add_callback(budgets)
        trainer.train()
    return budgets.found


def _one_by_one(made: Iterator[list[Trajectory]], budgets: Budgets) -> Iterator[Trajectory]:
    while True:
        began = time.process_time()
        batch = next(made)
        budgets.aside += time.process_time() - began
        yield from batch


def base_state(seed: int, *, model: str, tasks: int) -> dict[str, Any]:
    """The measures of the untrained model."""
    trained, base = load(model), load(model)
    attention.prepare(base, "concat")
    return {"at_loss_tokens": state(trained, base, heldout(tasks), seed, True)}


def state(model: Any, base: Any, tasks: Any, seed: int, covered: bool) -> dict[str, Any]:
    """What `model` does now; it is left as it was."""
    implementation, training = model.config._attn_implementation, model.training
    found = measure(model, base, tasks, reuse="exact", seed=seed)
    if covered:
        again = [task for task in tasks[:COVERED] for _ in range(TIMES)]
        written = sample_trajectories(model, again, seed=seed + 1)
        endings = [ending(*pair, decode) for pair in zip(again, written, strict=True)]
        groups = [endings[i : i + TIMES] for i in range(0, len(endings), TIMES)]
        found |= {name: one["mean"] for name, one in coverage(groups).items()}
    attention.prepare(model, "concat")
    model.eval()
    found["drift"] = fmean(drift(model, base, static_texts()))
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
