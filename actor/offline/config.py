"""Settings of an actor that runs alone, for `dynatok collect` and `eval`. Imports nothing heavy."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from actor.config import DraftsConfig, ReusePolicy, SamplingConfig, check_drafts
from dynatok_online.policy import parse_policy


class AloneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every actor that runs alone needs."""

    model: str = "tiny"
    """`tiny` (the embedded model), a folder, or a name on the model hub."""
    tasks: str = "tiny"
    """Where tasks come from: `tiny`, a .jsonl or .yaml file, module:name, hub:owner/name."""
    skip_bad: bool = False
    """Leave out tasks that cannot be used, and count them, instead of stopping at the first."""
    sessions: int = 32
    """Live sessions at once."""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn."""
    drafts: DraftsConfig = DraftsConfig()
    """Guesses of the next tokens, checked several at a time; off: `tokens: 0`."""
    placement: Literal["head", "late"] = "head"
    """Where slots stand: `head` (as the template says) or `late` (behind the response so far)."""
    chat_template_kwargs: dict[str, Any] = {}
    """Options of the model's chat template (`enable_thinking: false`), for tasks that are chat."""
    system_prompt: str = ""
    """Opens chats that have no system message of their own; empty: none."""
    engine: dict[str, Any] = {}
    """vLLM's engine arguments, passed through (`max_model_len: 512`, `dtype: bfloat16`, ...).
    `dtype: auto` on a CPU: bfloat16 where that is faster."""
    environment: dict[str, str] = {}
    """Environment variables of the engine, for example `VLLM_CPU_OMP_THREADS_BIND: "0"`."""

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise ValueError(f"sessions is {self.sessions}; write 1 or more")
        check_drafts(self.drafts, self.sampling, self.engine)


class CollectConfig(AloneConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok collect`."""

    out: str = "runs/collected"
    """Folder for the shards; a collection that was begun there is resumed."""
    trajectories: int = 1000
    """How many to collect."""
    split: Literal["train", "heldout"] = "train"
    """Which tasks."""
    seed: int = 0
    """Chooses the tasks and the draws."""
    reuse: ReusePolicy = "exact"
    """What a pass takes from the cache after an edit: `exact`, `sticky`, `refresh:64` (sticky, but
    the last 64 tokens are computed anew; `refresh:0-128` draws how many for every pass), `turned`
    (sticky, whose slots may grow and shrink), `none`."""
    shard_size: int = 250
    """Trajectories of one Parquet file."""
    push_to_hub: str = ""
    """Also upload the folder as this data set (owner/name) when it is complete."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_policy(self.reuse)
        for name in ("trajectories", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; write 0 or more")


class GoldConfig(AloneConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok gold`."""

    out: str = "runs/gold.jsonl"
    """File for the task rows with their gold responses; one that was begun is resumed."""
    texts: int = 600
    """How many to make."""
    rewrites: int = 1
    """How many of them are made of one text that the model wrote, each under other states and
    edits, where tasks differ in their slots alone also of another task."""
    split: Literal["train", "heldout"] = "train"
    """Which tasks."""
    seed: int = 0
    """Chooses states, edits and draws."""
    words: tuple[int, int] = (50, 80)
    """Longest text in words, drawn between these; it ends with a whole sentence."""
    least_words: int = 12
    """Words between two edits, at least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("texts", "rewrites", "least_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; write 0 or more")
        if not 2 * self.least_words <= self.words[0] <= self.words[1]:
            raise ValueError(
                f"words is {list(self.words)}; write two numbers in order, the first at least "
                f"twice least_words ({self.least_words})"
            )
        if not self.out.endswith(".jsonl"):
            raise ValueError(f"out is {self.out!r}; name a .jsonl file")


class EvalConfig(AloneConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok eval`."""

    name: str = "eval"
    """First part of the run folder's name."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    split: Literal["train", "heldout"] = "heldout"
    """Which tasks."""
    count: int = 160
    """How many tasks, sampled once per seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each chooses its own tasks and draws; intervals are over seeds."""
    reuse: tuple[ReusePolicy, ...] = ("exact",)
    """Reuse policies to measure, one after the other: `exact,sticky,refresh:64` draws adherence
    against the tokens that edits compute again."""
    base_model: str = ""
    """Judges fluency (per-token NLL of the responses under it) and drift (KL of the model from it
    on text before the first edit). Empty: no such judge."""
    responses: int = 1
    """Responses to each task. From 2 on, coverage is measured: how many are valid, unique, both."""
    stale: bool = False
    """Also measure how much of an edit old KV swallows, under each `reuse` that keeps some."""
    samples: str = ""
    """Run folder of an earlier evaluation with these settings: measure its responses again instead
    of sampling, with another `base_model`, say. Empty: sample."""
    gold: str = ""
    """A file of gold responses (`dynatok gold --split heldout`) that is measured beside the model:
    what fluency following requirements costs at least. Empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("count", "responses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write 1 or more")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds is {self.seeds}; write one or more numbers from 0 up")
        if not self.reuse:
            raise ValueError("reuse is empty; write exact, sticky, refresh:64 or none")
        for policy in self.reuse:
            parse_policy(policy)
        if self.stale and not any(parse_policy(one).keeps for one in self.reuse):
            raise ValueError(
                f"stale needs sticky or refresh:64 in reuse, which is {list(self.reuse)}"
            )
        if len(set(self.reuse)) != len(self.reuse):
            raise ValueError(f"reuse is {list(self.reuse)}; name each policy once")
