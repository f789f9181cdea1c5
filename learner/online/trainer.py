"""The trainer of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dynatok_online.training.trainer import DynamicSFTTrainer


class OnlineTrainer(DynamicSFTTrainer):
    """Takes its batches from the stream as they are: nothing is prefetched or dealt out."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """accelerate's loader would read one batch ahead: an older policy, and one too many."""
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )

    def load(self, checkpoint: Path) -> None:
        """Take a checkpoint's weights over, adapters included, without training on."""
        self._load_from_checkpoint(str(checkpoint))
