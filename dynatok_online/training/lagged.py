"""Statistics of earlier steps: moved on at every step, and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from dynatok_online.objectives.lagged import Lagged


class LaggedCallback(TrainerCallback, ExportableState):
    """Their state goes into the trainer's own `trainer_state.json`."""

    def __init__(self, past: Lagged, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._past = past
        self._total = total

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Go on from a checkpoint, where there is one."""
        stored: Any = (state.stateful_callbacks or {}).get(type(self).__name__)
        if isinstance(stored, list):  # of a trainer that was trained before
            stored = stored[-1]
        if stored:
            self._past.restore(stored["attributes"])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """All ranks have told theirs."""
        self._past.step(self._total)

    def state(self) -> dict[str, Any]:
        """What `ExportableState` keeps."""
        return {"args": {}, "attributes": self._past.state()}
