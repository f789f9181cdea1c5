"""From a configuration, the learner's or that of `dynatok train`, to the arguments of the trainer.

`training` and `deepspeed` pass through under the names that TRL and DeepSpeed gave them; only
what is not written gets a default. Errors name the fields as the user wrote them: `where` is
`learner.` for the learner, and empty for `dynatok train`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dynatok_online.training.trainer import DynamicSFTConfig
    from learner.config import LearnerConfig


class Settings(Protocol):
    """What both configurations say about training."""

    @property
    def training(self) -> dict[str, Any]:
        """Arguments of `DynamicSFTConfig`."""

    @property
    def deepspeed(self) -> dict[str, Any] | str:
        """A DeepSpeed configuration, or the path of one."""

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""

    @property
    def objective(self) -> str | dict[str, Any] | list[str | dict[str, Any]]:
        """The loss of a token."""

    @property
    def trajectories_per_step(self) -> int:
        """Trajectories of one optimizer step."""


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
    "deepspeed": "deepspeed",
    "objective": "objective",
    "seed": "seed",
    "per_device_train_batch_size": "trajectories_per_step",
    "output_dir": "run_dir",
}
"""Argument -> the field of the configuration that sets it."""


def training_arguments(
    settings: Settings,
    run_dir: Path,
    *,
    world_size: int = 1,
    where: str = "learner.",
    defaults: Mapping[str, Any] | None = None,
) -> DynamicSFTConfig:
    """The trainer's arguments. Raises ValueError for an unknown or contradicting one.

    `defaults` take precedence over `DEFAULTS`, and what the user wrote over both.
    """
    from dynatok_online.training.trainer import DynamicSFTConfig

    written = settings.training
    _check_names(f"{where}training", written, _arguments_of(DynamicSFTConfig), "SFTConfig")
    given = {**DEFAULTS, **(defaults or {}), **written}
    if not isinstance(given.get("max_steps"), int) or given["max_steps"] < 1:
        raise ValueError(
            f"{where}training.max_steps must be at least 1, got {given.get('max_steps')!r}: it "
            "says when training ends"
        )
    accumulated = given.get("gradient_accumulation_steps", 1)
    if not isinstance(accumulated, int) or accumulated < 1:
        raise ValueError(
            f"{where}training.gradient_accumulation_steps must be at least 1, got {accumulated!r}"
        )
    shares = accumulated * world_size
    if settings.trajectories_per_step % shares:
        raise ValueError(
            f"{where}trajectories_per_step ({settings.trajectories_per_step}) must be divisible "
            f"by gradient_accumulation_steps times the number of ranks ({shares})"
        )
    deepspeed = deepspeed_arguments(settings.deepspeed, where)
    try:
        return DynamicSFTConfig(
            **{
                **given,
                "output_dir": str(run_dir / CHECKPOINTS),
                "seed": settings.seed,
                "objective": settings.objective,
                "per_device_train_batch_size": settings.trajectories_per_step // shares,
                "deepspeed": deepspeed,
            }
        )
    except (TypeError, ValueError) as error:  # a value that TRL or transformers does not take
        raise ValueError(f"{where}training: {error}") from error


def stream_arguments(settings: LearnerConfig, run_dir: Path) -> DynamicSFTConfig:
    """The arguments of a trainer that is fed by a stream, and can be killed at any moment."""
    given = settings.training
    if given.get("save_only_model") or given.get("save_total_limit", 2) == 1:
        raise ValueError(
            "learner.training must keep two whole checkpoints, or a crash while one is written "
            "loses the run: leave out save_only_model, and let save_total_limit be 2 or more"
        )
    import torch

    # The stream itself knows where it was.
    defaults: dict[str, Any] = {"ignore_data_skip": True, "run_name": settings.run_id}
    if settings.ranks > 1:
        defaults |= reachable()
    elif not torch.accelerator.is_available():
        defaults["use_cpu"] = True  # or transformers takes bf16 for a GPU's
    return training_arguments(settings, run_dir, world_size=settings.ranks, defaults=defaults)


def reachable() -> dict[str, Any]:
    """Arguments without which ranks do not find each other where there is no accelerator."""
    import torch

    if torch.accelerator.is_available():
        return {}
    return {"use_cpu": True, "ddp_backend": "gloo"}


def message_deadline(config: LearnerConfig, arguments: DynamicSFTConfig) -> float:
    """Seconds that a rank waits for word of rank 0, which may wait itself for a batch (the first of
    all takes longest), or for a free buffer."""
    return (
        config.start_deadline
        + config.batch_deadline
        + config.publish_deadline
        + arguments.ddp_timeout
    )


def _arguments_of(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config) if field.init]


def _check_names(where: str, given: Iterable[str], known: list[str], of: str) -> None:
    section = where.rpartition(".")[0]
    for name in given:
        if of == "SFTConfig" and name in _SET_ELSEWHERE:
            field = ".".join(filter(None, [section, _SET_ELSEWHERE[name]]))
            raise ValueError(f"{where}.{name} is set by {field} instead")
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1, 0.0)[0]
            raise ValueError(f"{where}.{name} is not an argument of {of}; did you mean {nearest}?")


def deepspeed_arguments(
    given: dict[str, Any] | str, where: str = "learner."
) -> dict[str, Any] | None:
    """DeepSpeed's configuration with its batch sizes left to the trainer; None for an empty one.

    Raises ValueError for a file that is missing or not JSON.
    """
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text())
        except OSError as error:
            raise ValueError(f"{where}deepspeed: cannot read {error.filename}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}deepspeed: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f"{where}deepspeed: the file must hold one JSON object")
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
    zero = given.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage") == 3:
        # Or no model comes out at the end, only its parts.
        zero = {"stage3_gather_16bit_weights_on_model_save": True, **zero}
        given = {**given, "zero_optimization": zero}
    return {**automatic, **given}


def lora_arguments(given: dict[str, Any], where: str = "learner.") -> dict[str, Any]:
    """What the trainer needs to train adapters. Raises ValueError for an unknown argument."""
    if not given:
        return {}
    from peft import LoraConfig

    _check_names(f"{where}lora", given, _arguments_of(LoraConfig), "LoraConfig")
    return {"peft_config": LoraConfig(**{"task_type": "CAUSAL_LM", **given})}
