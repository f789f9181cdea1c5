"""`trl.SFTConfig`, and how trajectories become rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig

from dynatok_online.objectives.objective import Objective
from dynatok_online.objectives.written import objective_of


@dataclass
class DynamicSFTConfig(SFTConfig):
    """`trl.SFTConfig`, and how trajectories become rows.

    Options of SFTConfig about text (packing, `max_length`, chat templates) do not apply: a
    trajectory is token ids already. bf16 is off by default where there is no accelerator.
    """

    strategy: str = field(
        default="packed",
        metadata={
            "help": "`packed`: spans, each computed once. `truncated`: one pass per prompt state. "
            "`snapshot`: the whole text per prompt state, other states' tokens masked."
        },
    )
    attention: str = field(
        default="concat",
        metadata={"help": "`concat` (default), `dense` (explicit mask) or `flex` (GPU)."},
    )
    max_row_tokens: int = field(
        default=16384,
        metadata={"help": "Token budget of one row: one forward and backward pass."},
    )
    memory: str = field(
        default="row",
        metadata={
            "help": "Activations kept at a time: a whole `row`'s (fastest) or its longest `pass`'s "
            "(shared prefixes run once, what follows them one after the other)."
        },
    )
    objective: Any = field(
        default="sft",
        metadata={
            "help": "The loss of a token: a name (`sft`, `reward`, `dft`, ...), a mapping "
            "(`{name: asft, kl: 0.1}`), or a list of them, which is summed; see docs/objectives.md."
        },
    )
    reference: str = field(
        default="start",
        metadata={
            "help": "What objectives that need one compare with: `start` (a frozen copy), "
            "`adapter` (LoRA switched off: no copy), `published` (online: what actors were given "
            "last), or another model's folder or hub id."
        },
    )
    reward_power: float = field(
        default=1.0, metadata={"help": "`reward`: the lowest score of a pass, to this power."}
    )
    reward_threshold: float = field(
        default=0.0, metadata={"help": "`reward`: passes with a lower score count 0."}
    )
    halves: int = field(
        default=0,
        metadata={
            "help": "Half fine-tuning: so many optimizer steps long the same random half of every "
            "layer stands still, then another; 0: never (dynatok_online/training/halves.py)."
        },
    )
    skip_thoughts: bool = field(
        default=False,
        metadata={"help": "Whether tokens up to `</think>` count 0; the tokenizer must know it."},
    )

    def __post_init__(self) -> None:
        given: Any = vars(self)
        if given["bf16"] is None and not torch.accelerator.is_available():
            self.bf16 = False
        # Ours are trajectories, not text: TRL must neither tokenize nor drop columns.
        self.remove_unused_columns = False
        self.dataset_kwargs = {**(given["dataset_kwargs"] or {}), "skip_prepare_dataset": True}
        if given["loss_type"] == "dft":  # TRL's name for it
            if self.objective not in ("sft", "dft"):
                raise ValueError(
                    f"loss_type='dft' and objective={self.objective!r} contradict each other; "
                    "leave loss_type out"
                )
            self.objective, self.loss_type = "dft", "nll"
        super().__post_init__()
        self.make_objective()  # or say what is wrong with it
        for name, allowed in (
            ("strategy", ("packed", "truncated", "snapshot")),
            ("attention", ("concat", "dense", "flex")),
            ("memory", ("row", "pass")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.max_row_tokens < 1:
            raise ValueError(f"max_row_tokens must be at least 1, got {self.max_row_tokens}")
        if self.halves < 0:
            raise ValueError(f"halves must be a number of steps, or 0 for none, got {self.halves}")
        for name, neutral, instead in (
            ("packing", False, "rows are always packed: see strategy and max_row_tokens"),
            ("padding_free", False, "rows are never padded"),
            ("assistant_only_loss", False, "the loss is on sampled tokens, always"),
            ("label_smoothing_factor", 0.0, "leave it at 0"),
            ("loss_type", "nll", "write nll, dft, or an objective"),
            ("use_liger_kernel", False, "leave it off"),
            ("average_tokens_across_devices", True, "the loss is always normalised globally"),
        ):
            if getattr(self, name) != neutral:
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported: {instead}")
        if self.memory == "pass":
            self._check_parts()

    def make_objective(self) -> Objective:
        """What `objective` says. Raises ValueError for what it cannot mean."""
        reward = {"power": self.reward_power, "threshold": self.reward_threshold}
        return objective_of(self.objective, reward)

    def _check_parts(self) -> None:
        """Parts of a row nest (forward, forward, backward, backward): not everything bears that."""
        instead = "or leave memory at row and lower max_row_tokens"
        if self.gradient_checkpointing and (self.gradient_checkpointing_kwargs or {}).get(
            "use_reentrant"
        ):
            raise ValueError(
                "memory='pass' needs the graph of a layer's keys, which reentrant checkpointing "
                "does not build; set gradient_checkpointing_kwargs={'use_reentrant': False}, "
                f"{instead}"
            )
        if self.activation_offloading:
            raise ValueError(
                "memory='pass' cannot be combined with activation_offloading, which expects every "
                f"backward right after its forward; set it to False, {instead}"
            )
