"""Settings of `dynatok train` and `dynatok select`. Imports nothing heavy."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dynatok_online.policy import parse_policy
from learner.config import (
    check_hindsight,
    check_objective,
    check_reference,
    check_training,
    zero_stage,
)
from learner.lora import check_names


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, and the data that is read for it."""

    seed: int = 0
    """Seed of everything that is drawn."""
    model: str = "tiny"
    """`tiny`, a local folder, or a hub id."""
    data: str = ""
    """A .jsonl or .parquet file, or a folder: trajectories, or tasks with gold responses."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and count them, instead of stopping at the first."""
    limit: int = 0
    """Use only so many trajectories; 0: all."""
    reuse: str = "exact"
    """Gold responses: the reuse policy of the engine that they stand for: `exact`, `sticky`,
    `both` (each in turn), `refresh:64` or, for a model that is to serve every number,
    `refresh:0-128`; `turned`: sticky with slots of any width, whose KV behind moves with them."""
    placement: Literal["head", "late"] = "head"
    """Gold responses: where slots stand, as in `actor.placement`."""
    chat_template_kwargs: dict[str, Any] = {}
    """Options of the model's chat template (`enable_thinking: false`)."""
    system_prompt: str = ""
    """Opens chats that have no system message of their own; empty: none."""
    block_size: int = 16
    """Gold responses: its tokens per KV block."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is missing; name a .jsonl or .parquet file, or a folder of them")
        if self.reuse != "both":
            parse_policy(self.reuse, none=False)
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; write 1 or more")
        for name in ("seed", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; write 0 or more")


class SelectConfig(DataConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok select`."""

    out: str = "runs/selected.jsonl"
    """File for what is kept; `dynatok train` reads it."""
    method: Literal["tshirt", "qtuning"] = "qtuning"
    """`tshirt`: whole responses that the prompt explains, whatever noise is added. `qtuning`:
    mistakes that can be mended, with fewer tokens, and what keeps the model calibrated."""
    keep: float = 0.25
    """Share of the responses to keep."""
    tokens: float = 0.5
    """qtuning: share of the tokens to keep in responses whose tokens are pruned."""
    neighbours: float = 0.5
    """qtuning: how much a token's neighbours count in its score (lambda)."""
    drop: Literal["high", "low"] = "high"
    """qtuning: which end of the tokens' scores is pruned."""
    noises: int = 30
    """tshirt: draws of noise."""
    alpha: float = 5.0
    """tshirt: size of the noise on embeddings, as NEFTune counts it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "tokens"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; write a share above 0, at most 1"
                )
        if not 0 <= self.neighbours <= 1:
            raise ValueError(f"neighbours is {self.neighbours}; write a share from 0 to 1")
        if self.noises < 1:
            raise ValueError(f"noises is {self.noises}; write 1 or more")
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}; write 0 or more")
        if not self.out.endswith(".jsonl"):
            raise ValueError(f"out is {self.out!r}; name a .jsonl file")


class TrainConfig(DataConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Offline training on trajectories, on one rank or several of this machine."""

    name: str = "train"
    """First part of the run folder's name."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    ranks: int = 1
    """Training processes."""
    trajectories_per_step: int = 16
    """Trajectories of one optimizer step, over all ranks and accumulation steps."""
    epochs: float = 1.0
    """Passes over the data; `training.max_steps` takes precedence."""
    objective: str | dict[str, Any] | list[str | dict[str, Any]] = "reward"
    """The loss of a token: `reward` (weighted by the verifiers' score of its pass), `sft`, or any
    of docs/objectives.md, with parameters (`{name: asft, kl: 0.1}`), or a list, which is summed."""
    lora: dict[str, Any] = {}
    """Arguments of peft's `LoraConfig`, such as `{r: 8, lora_alpha: 16}`: adapters are trained, and
    kept in `RUN/adapter`; `RUN/model` has them merged. Empty: the whole model is trained."""
    training: dict[str, Any] = {}
    """Arguments of `DynamicSFTConfig` (`bf16: auto`: where that is faster): those of TRL's
    `SFTConfig`, and those that say how
    trajectories become rows and what a token counts."""
    deepspeed: dict[str, Any] | str = msgspec.field(
        default_factory=lambda: {"zero_optimization": {"stage": 2}}
    )
    """A DeepSpeed configuration, or the path of one. An empty one trains without DeepSpeed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ranks", "trajectories_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write 1 or more")
        if self.epochs <= 0:
            raise ValueError(f"epochs is {self.epochs}; write a number above 0")
        if self.trajectories_per_step % self.ranks:
            raise ValueError(
                f"trajectories_per_step ({self.trajectories_per_step}) must be divisible by the "
                f"number of ranks ({self.ranks})"
            )
        check_names(self.lora, "lora")
        check_training("training", self.training)
        check_objective("objective", self.objective)
        stage = 0 if isinstance(self.deepspeed, str) else zero_stage(self.deepspeed)
        check_hindsight("", self.objective, self.reuse, self.placement)
        check_reference("", self.objective, self.training, self.lora, stage)
