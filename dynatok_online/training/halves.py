"""Half fine-tuning: in every round another random half of the weights stands still.

    trainer.add_callback(Halves(every=50))

After T. Hui et al., "HFT: Half Fine-Tuning for Large Language Models", 2024 (arXiv 2404.18466):
what stands still keeps what the model knew. In each layer two of the four attention matrices (Q,
K, V, O) are frozen, half of the matrices of the feed-forward network (of three: one or two, by
layer in turn), and half of the norms. Biases go with their matrix; embeddings and head always
train. A round is `every` optimizer steps. What is drawn depends on seed and round alone, so ranks
agree, and a resumed run goes on in the same round.

Frozen means equal bit by bit, and so are the optimizer's moments: weight decay and momentum do not
reach them either. One process freezes by `requires_grad`, which saves the gradients, too. Under
DDP and DeepSpeed every weight must have a gradient: it is made zero, and what the optimizer
changed all the same is put back after each step, from a copy of what this rank holds of the frozen
weights and their moments.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Unit = list[torch.nn.Parameter]

SHARDED = (
    "halves cannot be combined with weights that are sharded over ranks (ZeRO 3 or FSDP): what is "
    "frozen could not be put back after a step; use ZeRO 2, or leave halves out"
)


class Halves(TrainerCallback):
    """See the module's docstring. Raises ValueError for a model without layers to halve."""

    def __init__(self, every: int, seed: int = 0) -> None:
        if every < 1:
            raise ValueError(f"halves must be at least 1 optimizer step, got {every}")
        self.every = every
        self.seed = seed
        self.frozen: list[torch.nn.Parameter] = []
        """What stands still in this round."""
        self._round = -1
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._hooks: list[Any] = []

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Draw another half where a round begins."""
        assert model is not None
        now = state.global_step // self.every
        if now == self._round:
            return
        self._release()
        self._round = now
        self.frozen = draw(model, f"{self.seed}/{now}")
        if args.world_size == 1 and not args.deepspeed:
            for one in self.frozen:
                one.requires_grad_(False)
                one.grad = None
            return
        if any(hasattr(one, "ds_id") for one in self.frozen):
            raise ValueError(SHARDED)
        self._hooks = [one.register_hook(torch.zeros_like) for one in self.frozen]
        held = [tensor for one in self.frozen for tensor in _held(one, optimizer)]
        self._kept = [(tensor, tensor.clone()) for tensor in held]

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """An optimizer passes over what has no gradient (DeepSpeed never asks here)."""
        for one in self.frozen:
            one.grad = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Put back what a step of DeepSpeed moved."""
        with torch.no_grad():
            for tensor, kept in self._kept:
                tensor.copy_(kept)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Let everything train again."""
        self._release()

    def _release(self) -> None:
        for one in self.frozen:
            one.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        self.frozen, self._kept, self._hooks = [], [], []


def draw(model: torch.nn.Module, seed: str) -> list[torch.nn.Parameter]:
    """The parameters that stand still under this seed; the same on every rank."""
    rng = random.Random(seed)
    found = []
    layers = list(_layers(model))
    for at, layer in enumerate(layers):
        for kind, units in _units(layer).items():
            # Of an odd number, one more or one less by layer in turn.
            count = (len(units) + (at % 2 if kind != "norms" else rng.randrange(2))) // 2
            found += [one for unit in rng.sample(units, count) for one in unit]
    if not found:
        raise ValueError(
            "halves found nothing to freeze: it needs a model with layers whose own weights train "
            "(adapters leave those alone anyway); leave halves out"
        )
    return found


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The transformer layers: the longest list of modules that is not inside another one."""
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    return iter(max(lists, key=len, default=()))


def _units(layer: torch.nn.Module) -> dict[str, list[Unit]]:
    """What is frozen together, by kind: a matrix with its bias, or one norm."""
    found: dict[str, list[Unit]] = {"attention": [], "feed-forward": [], "norms": []}
    for name, module in layer.named_modules():
        own: Sequence[torch.nn.Parameter] = [
            one for one in module.parameters(recurse=False) if one.requires_grad
        ]
        wide = [one for one in own if one.ndim > 1]
        if not own or "lora_" in name:
            continue
        if not wide:
            kind = "norms"
        else:
            kind = "attention" if "attn" in name or "attention" in name else "feed-forward"
        # Experts keep several matrices in one module.
        found[kind] += [[one] for one in own] if len(wide) > 1 else [list(own)]
    return found


def _held(parameter: torch.nn.Parameter, optimizer: Any) -> Iterator[torch.Tensor]:
    """Everything that a step may change: the weights, DeepSpeed's own copy, and the moments."""
    yield parameter.data
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:
        yield mapping.get_hp_fragment()
        # There are none before the first step, and what had no gradient then has zeros after it.
        yield from (mapping.optim_fragment or {}).values()
        return
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    for value in getattr(inner, "state", {}).get(parameter, {}).values():
        if torch.is_tensor(value):
            yield value
