"""The last moment at which the weights in training are those that were published.

transformers' `on_pre_optimizer_step` is that moment, except under DeepSpeed: accelerate lets the
engine step at the end of the last backward, before the callback is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class BeforeStep(TrainerCallback):
    """Calls `call` when all gradients are there and the optimizer is about to move the weights."""

    def __init__(self, call: Callable[[], None], model: Callable[[], Any]) -> None:
        """`model`: as the trainer calls it once training has begun."""
        self._call = call
        self._model = model
        self._by_engine = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Step through us, where DeepSpeed's engine steps by itself."""
        engine = self._model()
        if not hasattr(engine, "set_gradient_accumulation_boundary"):
            return
        self._by_engine = True
        step = engine.step

        def step_after(*arguments: Any, **more: Any) -> Any:
            self._call()
            return step(*arguments, **more)

        engine.step = step_after

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The gradients are there."""
        if not self._by_engine:
            self._call()
