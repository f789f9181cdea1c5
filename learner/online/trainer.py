"""The trainer of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from dynatok_online import tiny
from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from learner.config import LearnerConfig
from learner.environment import join
from learner.online.gather import ToPublish
from learner.online.shares import Batch
from learner.online.steps import Steps
from learner.training import lora_arguments


class OnlineTrainer(DynamicSFTTrainer):
    """Takes its rows as they come: nothing is prefetched, and accelerate deals nothing out."""

    steps: Steps
    """Set before training."""
    _publishes = True

    def __init__(self, config: LearnerConfig, arguments: DynamicSFTConfig) -> None:
        join(arguments)
        model = tiny.resolve(config.model)
        super().__init__(model, arguments, iter(()), **lora_arguments(config.lora))
        self.remove_callback(PrinterCallback)
        self._saved_at: int | None = None
        """Step of the newest checkpoint; None: not asked for a step yet."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """An empty one; see `get_batch_samples`."""
        return DataLoader(self.train_dataset, batch_size=self.args.per_device_train_batch_size)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The micro batches of one optimizer step, and the step's number of loss tokens."""
        done = self.state.global_step
        if self._saved_at is None:
            self._saved_at = done
        step = self.steps.next()
        if step is None:  # or transformers asks again, up to max_steps times
            self.control.should_epoch_stop = self.control.should_training_stop = True
            self.control.should_save = self.steps.save_at_end and done > self._saved_at
            return [], None
        self.newest = step.newest
        self._fill(step.batches)
        return step.batches, torch.tensor(step.loss_tokens, device=device)

    def published_weights(self, sent: ToPublish) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's part in publishing the weights as they are, which a reference may follow."""
        if self._reference is not None:
            self._reference.follow(self.accelerator.unwrap_model(self.model))
        return sent.stream()

    def _save_checkpoint(self, *arguments: Any, **more: Any) -> None:
        super()._save_checkpoint(*arguments, **more)
        self._saved_at = self.state.global_step

    def load(self, checkpoint: Path) -> None:
        """Take a checkpoint's weights over, adapters included, without training on."""
        self._load_from_checkpoint(str(checkpoint))
