"""From the learner's config to the arguments of its trainer.

`training` and `deepspeed` pass through under the names that TRL and DeepSpeed gave them; only
what is not written gets a default that suits training from a stream.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynatok_online.training.trainer import DynamicSFTConfig
    from learner.config import LearnerConfig

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
"""Under the user's own `training` arguments: the rate stays, every step is logged to
`metrics.jsonl`, a checkpoint is written every hundred steps, and activations are kept."""

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""

_SET_ELSEWHERE = {
    "deepspeed": "learner.deepspeed",
    "objective": "learner.objective",
    "seed": "the run's seed",
    "per_device_train_batch_size": "learner.trajectories_per_step",
    "output_dir": "learner.run_dir",
}


def training_arguments(config: LearnerConfig, world_size: int = 1) -> DynamicSFTConfig:
    """The trainer's arguments. Raises ValueError for an unknown or contradicting one."""
    from dynatok_online.training.trainer import DynamicSFTConfig

    given = dict(config.training)
    known = [field.name for field in dataclasses.fields(DynamicSFTConfig) if field.init]
    for name in given:
        if name in _SET_ELSEWHERE:
            raise ValueError(f"learner.training.{name} is set by {_SET_ELSEWHERE[name]} instead")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise ValueError(
                f"learner.training.{name} is not an argument of SFTConfig; did you mean {nearest}?"
            )
    if not isinstance(given.get("max_steps"), int) or given["max_steps"] < 1:
        raise ValueError(
            "learner.training.max_steps must be at least 1: a stream has no end of its own, got "
            f"{given.get('max_steps')!r}"
        )
    if given.get("save_only_model") or given.get("save_total_limit", 2) == 1:
        raise ValueError(
            "learner.training must keep two whole checkpoints, or a crash while one is written "
            "loses the run: leave out save_only_model, and let save_total_limit be 2 or more"
        )
    shares = given.get("gradient_accumulation_steps", 1) * world_size
    if config.trajectories_per_step % shares:
        raise ValueError(
            f"learner.trajectories_per_step ({config.trajectories_per_step}) must be divisible by "
            f"gradient_accumulation_steps times the number of ranks ({shares})"
        )
    return DynamicSFTConfig(
        **{
            **DEFAULTS,
            **given,
            "output_dir": str(Path(config.run_dir) / CHECKPOINTS),
            "ignore_data_skip": True,  # the stream itself knows where it was
            "seed": config.seed,
            "objective": config.objective,
            "per_device_train_batch_size": config.trajectories_per_step // shares,
            "deepspeed": deepspeed_arguments(config.deepspeed),
        }
    )


def deepspeed_arguments(given: dict[str, Any] | str) -> dict[str, Any] | None:
    """DeepSpeed's configuration with its batch sizes left to the trainer; None for an empty one.

    Raises ValueError for a file that is missing or not JSON.
    """
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text())
        except OSError as error:
            raise ValueError(f"learner.deepspeed: cannot read {error.filename}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"learner.deepspeed: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError("learner.deepspeed: the file must hold one JSON object")
    if not given:
        return None
    automatic = dict.fromkeys(
        (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
        ),
        "auto",
    )
    return {**automatic, **given}


def lora_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What the trainer needs to train adapters. Raises ValueError for an unknown argument."""
    if not given:
        return {}
    from peft import LoraConfig

    known = [field.name for field in dataclasses.fields(LoraConfig) if field.init]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise ValueError(
                f"learner.lora.{name} is not an argument of LoraConfig; did you mean {nearest}?"
            )
    return {"peft_config": LoraConfig(**{"task_type": "CAUSAL_LM", **given})}
