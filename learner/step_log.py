"""The numbers of every step, online and offline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks


class StepLog(TrainerCallback):
    """Hands the numbers of every logged step to `write`, with the seconds that each stage took.

    With `logging_steps` above 1 the seconds are means over the steps since the last log. `reached`
    is told of every step. What `write` returns is for whatever `report_to` names, too: see
    `report_last`.
    """

    def __init__(
        self,
        stages: Callable[[], dict[str, float]],
        write: Callable[[int, dict[str, float]], dict[str, float] | None],
        reached: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._stages = stages
        self._write = write
        self._reached = reached
        self._step = 0
        self._before: dict[str, float] = {}
        self._at = time.perf_counter()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The clock starts when training does."""
        self._before, self._at = self._stages(), time.perf_counter()
        self._step = state.global_step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer moved."""
        self._reached(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """`logs` is what the trainer logged; the summary after the last step is left out."""
        if not logs or "loss" not in logs:
            return
        now, stages = time.perf_counter(), self._stages()
        steps = max(1, state.global_step - self._step)
        seconds = {
            f"seconds_{name}": (value - self._before.get(name, 0.0)) / steps
            for name, value in stages.items()
        }
        seconds["seconds_step"] = (now - self._at) / steps
        self._before, self._at, self._step = stages, now, state.global_step
        told = self._write(state.global_step, {**logs, **seconds})
        logs.update(told or seconds)  # the dict that the callbacks behind this one read


def report_last(trainer: Trainer) -> None:
    """Have those that `report_to` names see what all other callbacks have added to the logs."""
    reports = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    trainer.callback_handler.callbacks.sort(key=lambda one: isinstance(one, reports))
