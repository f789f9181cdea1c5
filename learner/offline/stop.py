"""A signal ends `dynatok train` after its step, with a checkpoint, on all ranks at once."""

from __future__ import annotations

import signal
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopCallback(TrainerCallback):
    """SIGINT asks for the end, SIGUSR1 for a checkpoint alone. Rank 0 is asked, all obey."""

    def __init__(self, accelerator: Accelerator, first: bool) -> None:
        """`first`: this is rank 0. Only a main thread can be asked."""
        self._accelerator = accelerator
        self._asked = [False, False]
        self.stopped = False
        """Training was ended by a signal."""
        if first:
            signal.signal(signal.SIGINT, lambda number, frame: self._ask(0))
            signal.signal(signal.SIGUSR1, lambda number, frame: self._ask(1))

    def _ask(self, what: int) -> None:
        self._asked[what] = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer moved."""
        asked = torch.tensor([int(one) for one in self._asked], device=self._accelerator.device)
        self._asked = [False, False]
        if self._accelerator.num_processes > 1:
            asked = self._accelerator.reduce(asked, "sum")
        stop, save = (bool(one) for one in asked.tolist())
        self.stopped = self.stopped or stop
        control.should_save = control.should_save or stop or save
        control.should_training_stop = control.should_training_stop or stop
