"""What a learner process needs to know. Imports nothing heavy: it is read before torch is."""

from __future__ import annotations

from typing import Any

import msgspec

from dynatok_online.objectives.targets import BROUGHT
from dynatok_online.objectives.written import objective_of
from learner.lora import SYNCS, check_adapter, check_names
from protocol.config import ProtocolConfig

_NUMBERS = (
    *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio"),
    *("max_steps", "gradient_accumulation_steps", "num_train_epochs", "logging_steps"),
    *("max_row_tokens", "reward_power", "reward_threshold", "halves"),
)


def check_training(section: str, training: dict[str, Any]) -> None:
    """Raise ValueError for a number that cannot be, before anything heavy is imported."""
    for name in _NUMBERS:
        value = training.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{section}.{name} must be a number, got {value!r}")
        if not value >= 0:
            raise ValueError(f"{section}.{name} must be at least 0, got {value}")


def check_objective(field: str, objective: Any) -> None:
    """Raise ValueError for an objective that cannot be, or that needs what nothing brings, before
    anything heavy is imported."""
    try:
        objective_of(objective).check(BROUGHT)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def check_hindsight(where: str, objective: Any, reuse: str, placement: str) -> None:
    """Raise ValueError where no pass computes earlier text under a new state. `where`: of the two
    fields."""
    made = objective_of(objective)
    if made.hindsight is None:
        return
    needs = "objective hindsight needs passes that compute earlier text under a new state"
    if reuse not in ("exact", "none"):
        raise ValueError(f"{needs}, and {where}reuse is {reuse}; write exact")
    if placement != "head":
        raise ValueError(
            f"{needs}, and with {where}placement {placement} it stands before the slots; write head"
        )


def check_reference(
    where: str, objective: Any, training: dict[str, Any], lora: dict[str, Any], stage: int
) -> None:
    """Raise ValueError for a reference that an objective needs and that cannot be, as far as
    settings alone say so. `where`: of the fields; `stage`: of ZeRO."""
    made, reference = objective_of(objective), training.get("reference", "start")
    if "reference" not in made.needs:
        return
    name = made.of_need("reference")
    if stage == 3:
        raise ValueError(
            f"{where}objective: {name} needs a reference, which cannot be run beside weights that "
            f"are sharded over ranks; write stage 2 in {where}deepspeed"
        )
    if reference == "adapter" and not lora:
        raise ValueError(
            f"{where}training.reference is adapter, the model with its adapters switched off, and "
            f"it has none; write {where}lora, or start"
        )
    if reference == "published" and not where:
        raise ValueError(
            "training.reference is published, what actors were given last, and nothing is "
            "published offline; write start, adapter or a path"
        )


def zero_stage(deepspeed: dict[str, Any]) -> int:
    """The ZeRO stage in a DeepSpeed configuration; 0 where it says none."""
    zero = deepspeed.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    return stage if isinstance(stage, int) else 0


class LearnerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One learner process. `training` and `deepspeed` pass through to TRL and DeepSpeed."""

    run_dir: str = "runs/learner"
    """Folder for metrics, `learner.json`, checkpoints and the trained model."""
    run_id: str = "run"
    """Name of the run; messages of another run are not read."""
    model: str = "tiny"
    """`tiny`, a local folder, or a hub id."""
    seed: int = 0
    """Seed of everything that the learner draws."""
    protocol: ProtocolConfig = msgspec.field(default_factory=ProtocolConfig)
    """Where to listen, and how long to wait for an answer."""
    lora: dict[str, Any] = {}
    """Arguments of peft's `LoraConfig`, such as `{r: 8, lora_alpha: 16}`: adapters are trained, and
    published as `weight_sync` says; at the end `RUN/adapter` has them, and `RUN/model` the model
    with them in its weights. What no actor can compute is refused (docs/models.md).
    Empty: the whole model is trained."""
    training: dict[str, Any] = {}
    """Arguments of `DynamicSFTConfig` (`bf16: auto`: where that is faster): those of TRL's
    `SFTConfig`, and those that say how
    trajectories become rows and what a token counts. `max_steps` ends the run. What is not written
    here has the defaults in `learner/training.py`."""
    deepspeed: dict[str, Any] | str = msgspec.field(
        default_factory=lambda: {"zero_optimization": {"stage": 2}}
    )
    """A DeepSpeed configuration, or the path of one. An empty one trains without DeepSpeed."""
    ranks: int = 1
    """Training processes of this machine, one a GPU where there are any. The loss does not depend
    on their number; what is kept of model and optimizer on each is `deepspeed`'s ZeRO stage."""
    trajectories_per_step: int = 16
    """Trajectories of one optimizer step, over all ranks and accumulation steps."""
    objective: str | dict[str, Any] | list[str | dict[str, Any]] = "reward"
    """The loss of a token: `reward` (weighted by the verifiers' score of its pass), `sft`, or any
    of docs/objectives.md, with parameters (`{name: asft, kl: 0.1}`), or a list, which is summed."""
    max_seconds: float = 0.0
    """Training ends with the first step that is over later than this many seconds after the first
    batch came, if `training.max_steps` has not ended it before; 0: no such limit."""
    publish_every: int = 1
    """Optimizer steps between two versions of the weights."""
    max_policy_lag: int = 4
    """A trajectory is dropped when the weights that sampled its oldest token are more than this
    many versions behind the newest published ones. Actors run ahead so far at most; a learner that
    never waits for its batches lets fewer begin, so that they are fresher."""
    weight_dtype: str = "float32"
    """What weights are published as: the engine's dtype (`float32`, `bfloat16`, `float16`)."""
    weight_sync: str = "merged"
    """What travels where `lora` is trained: `merged`, the whole model with its adapters in its
    weights, or `adapter`, the adapters alone, which vLLM serves beside weights that stay as they
    are. What it cannot serve so is refused (docs/models.md)."""
    weight_transport: str = "shm"
    """How weights travel: `shm` (one machine), `folder` (a run folder on a file system that actors
    and learner share), `zmq` (neither) or `store` (an object store, `protocol.weights_store`).
    Actors follow."""
    weight_full_every: int = 0
    """`zmq`: send one of so many versions whole and the others as compressed differences, where
    that saves something; 0: all whole."""
    canary_texts: int = 2
    """Fixed texts whose log-probabilities the actor must reproduce before it serves weights."""
    canary_tokens: int = 24
    """Tokens of each of them."""
    canary_tolerance: float = 1e-3
    """Largest mean absolute difference over one of them. Half-precision engines need more."""
    logprob_gap_threshold: float = 1e-3
    """The run fails when the mean absolute difference between the actor's log-probabilities and
    the learner's, at equal weights, is above this. Half-precision engines need more."""
    logprob_gap_trajectories: int = 1
    """Trajectories compared per weight version (the last pass of each); 0: none is compared."""
    audit_mismatch_threshold: int = 0
    """The run fails when more trajectories than this contradict what the engine reported."""
    journal_bytes: int = 8 * 2**30
    """Most that the journal of received trajectories may take on disk. What a checkpoint includes
    is deleted from it; when it is full, nothing more is taken in until there is room."""
    prometheus_port: int = 0
    """Port of this machine that serves the numbers to Prometheus; 0 takes a free one (see
    `RUN/prometheus`), -1 none."""
    threads: int = 0
    """CPU threads of the training step; 0 takes `OMP_NUM_THREADS`, or an equal share of the cores
    where that is not set."""
    start_deadline: float = 1800.0
    """Seconds to wait for the first trajectory of all before the run fails: engines start, and
    evaluate, before they collect."""
    batch_deadline: float = 300.0
    """Seconds to wait for the trajectories of one step, once the first of all has come, before the
    run fails."""
    publish_deadline: float = 30.0
    """Seconds to wait for a free weight buffer before the run fails."""
    stop_grace: float = 30.0
    """Seconds that it may take after a signal to make its step, write a checkpoint and end. Large
    models need more."""
    finish_deadline: float = 600.0
    """Seconds to wait, after the last step, until the actors have evaluated and left."""

    def __post_init__(self) -> None:
        for name in (
            "ranks",
            "stop_grace",
            "trajectories_per_step",
            "publish_every",
            "journal_bytes",
            "canary_texts",
            "start_deadline",
            "batch_deadline",
            "publish_deadline",
            "finish_deadline",
            "logprob_gap_threshold",
            "canary_tolerance",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"learner.{name} must be above 0, got {getattr(self, name)}")
        for name in (
            "max_policy_lag",
            "weight_full_every",
            "max_seconds",
            "threads",
            "logprob_gap_trajectories",
            "audit_mismatch_threshold",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"learner.{name} must be at least 0, got {getattr(self, name)}")
        check_training("learner.training", self.training)
        check_names(self.lora)
        if self.weight_sync not in SYNCS:
            raise ValueError(
                f"learner.weight_sync must be {' or '.join(SYNCS)}, got {self.weight_sync!r}"
            )
        if self.weight_sync == "adapter":
            check_adapter(self.lora)
        if self.canary_tokens < 2:
            raise ValueError(
                f"learner.canary_tokens must be at least 2, got {self.canary_tokens}: the first "
                "token of a text has no log-probability"
            )
        check_objective("learner.objective", self.objective)
        stage = 0 if isinstance(self.deepspeed, str) else zero_stage(self.deepspeed)
        check_reference("learner.", self.objective, self.training, self.lora, stage)
        if self.weight_transport in ("nccl", "ipc"):
            raise ValueError(
                f"learner.weight_transport {self.weight_transport} is vLLM's own transport between "
                "GPUs, which this learner does not drive; write shm, folder, zmq or store"
            )
        if self.weight_transport not in ("shm", "folder", "zmq", "store"):
            raise ValueError(
                "learner.weight_transport must be shm, folder, zmq or store, "
                f"got {self.weight_transport!r}"
            )
        if self.weight_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                "learner.weight_dtype must be float32, bfloat16 or float16, "
                f"got {self.weight_dtype!r}"
            )
