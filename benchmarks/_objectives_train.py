"""One run of the objectives experiment: the trainer itself, stopped twice to be measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks._objectives_arms import Arm, shuffled_within
from benchmarks._objectives_select import again, chosen, pooled
from dynatok_online import attention
from dynatok_online.adherence.coverage import coverage, ending
from dynatok_online.adherence.scoring import Decode
from dynatok_online.tasks.task import Task
from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from dynatok_online.trajectory import Trajectory

WARMUP = 10


class World(Protocol):
    """A model, what it trains on and how it is measured: the tiny world, or a chat model."""

    batch: int
    """Trajectories of an optimizer step."""
    kernel: str
    cpu: bool

    def model(self) -> Any:
        """A fresh copy of the untrained model."""
        ...

    def learning_rate(self, arm: Arm) -> float:
        """Constant after the warm-up."""
        ...

    def batches(self, arm: Arm, seed: int, model: Any) -> Iterator[list[Trajectory]]:
        """Without end; on gold the same for every arm of a seed."""
        ...

    def state(self, model: Any, seed: int, covered: bool) -> dict[str, Any]:
        """What `model` does now, with coverage if asked for; it is left as it was."""
        ...


def mean_coverage(
    tasks: Sequence[Task], written: Sequence[Trajectory], times: int, decode: Decode
) -> dict[str, float]:
    """Coverage, in the mean, of responses of which `times` in a row are to one task."""
    endings = [ending(*pair, decode) for pair in zip(tasks, written, strict=True)]
    groups = [endings[i : i + times] for i in range(0, len(endings), times)]
    return {name: one["mean"] for name, one in coverage(groups).items()}


@dataclass
class Budgets(TrainerCallback):
    """Measures when each budget is spent, and stops when both are. Time is CPU time of this
    process, without that of measuring and of making data; 0 seconds: no such budget."""

    seconds: float
    loss_tokens: int
    measured: Any
    say: Callable[[str], None]
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
        self.say(f"{self.used} of {self.loss_tokens} loss tokens")
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
        logits = model(**attention.inputs(row, model.device), use_cache=False).logits[0].float()
    targets = torch.as_tensor(row.targets, dtype=torch.long, device=logits.device)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return -nll.cpu().numpy()


def run_arm(
    arm: Arm,
    seed: int,
    *,
    world: World,
    seconds: float,
    loss_tokens: int,
    say: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Train one arm until both budgets are spent: its measures at each, and what was selected.

    Selecting counts no training time.
    """
    torch.manual_seed(seed)
    trained = world.model()
    made = world.batches(arm, seed, trained)
    selected: dict[str, Any] = {}
    if arm.select:
        pool = pooled(made, loss_tokens)
        kept, facts = chosen(arm.select, world.model(), pool, seed)
        made, selected = again(kept, world.batch, seed), {"selected": facts}
    budgets = Budgets(
        seconds, loss_tokens, lambda covered: world.state(trained, seed, covered), say
    )
    with tempfile.TemporaryDirectory() as folder:
        kind = ShuffledTrainer if arm.shuffled else CountingTrainer
        trainer = kind(
            trained,
            DynamicSFTConfig(
                output_dir=folder,
                objective=arm.objective,
                max_steps=100_000,
                per_device_train_batch_size=world.batch,
                max_row_tokens=8192,
                attention=world.kernel,
                learning_rate=world.learning_rate(arm),
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
                use_cpu=world.cpu,
                bf16=not world.cpu,
            ),
            train_dataset=_one_by_one(made, budgets),
        )
        trainer.budgets = budgets
        trainer.add_callback(budgets)
        trainer.train()
    return budgets.found | selected


def _one_by_one(made: Iterator[list[Trajectory]], budgets: Budgets) -> Iterator[Trajectory]:
    while True:
        began = time.process_time()
        batch = next(made)
        budgets.aside += time.process_time() - began
        yield from batch
