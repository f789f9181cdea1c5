"""The trained model on disk, as every program loads it.

With adapters, `model` is the model with these in its weights, and `adapter` what peft loads.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from learner.online.gather import gather_weights, stream_weights
from learner.online.publisher import take_all

MODEL = "model"
ADAPTER = "adapter"


def save_trained(trainer: Any, run_dir: Path, first: bool) -> None:
    """Write it into the run folder. All ranks call it: ZeRO-3 gathers. `first`: rank 0."""
    if not hasattr(trainer.model, "peft_config"):
        trainer.save_model(str(run_dir / MODEL))
        return
    trainer.save_model(str(run_dir / ADAPTER))
    base = trainer.model.get_base_model()
    if not first:
        take_all(stream_weights(trainer.model, base.dtype))
        return
    weights = gather_weights(trainer.model, base.dtype)
    with torch.device("meta"):
        plain = type(base)(copy.deepcopy(base.config))
    plain.load_state_dict(weights, strict=False, assign=True)  # a tied head comes once
    plain.tie_weights()
    plain.save_pretrained(run_dir / MODEL)
    tokenizer: Any = trainer.processing_class
    if tokenizer is not None:
        tokenizer.save_pretrained(run_dir / MODEL)
