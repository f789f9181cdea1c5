"""Settings of the actor. Importing this pulls in neither torch nor vllm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from dynatok_online.policy import parse_policy
from protocol.config import ProtocolConfig
from protocol.wire.envelope import check_name

ReusePolicy = str
"""What a pass takes from the cache: `exact`, `sticky`, `refresh:M`, `turned` or
`none` (`dynatok_online.policy` says what they mean)."""
OnWeights = Literal["restart", "continue"]
"""What becomes of passes in flight when weights change. `restart`: they end, and new passes resume
their responses. `continue`: they go on, on the KV that the old weights computed."""


MOST_DRAFTS = 64
"""Drafts of one step: more than this, and hardly any is ever accepted."""
NOT_WITH_DRAFTS = ("logits_processors", "async_scheduling", "return_sampling_mask")
"""Engine arguments that vLLM refuses or ignores beside drafts."""


def _positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{where}.{name} is {value}; write a number above 0")


class SamplingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Keep that many most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token."""
    max_tokens: int | None = None
    """Longest response; a task's own limit has precedence where it is lower."""

    def __post_init__(self) -> None:
        where = "actor.sampling"
        if self.temperature < 0:
            raise ValueError(f"{where}.temperature is {self.temperature}; write 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{where}.top_p is {self.top_p}; write a number above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"{where}.top_k is {self.top_k}; write 0 (all tokens) or more")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"{where}.min_p is {self.min_p}; write a number from 0 to 1")
        if self.max_tokens is not None:
            _positive(where, max_tokens=self.max_tokens)


class DraftsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Guesses of the next tokens, which the engine checks several at a time (speculative decoding).
    What is drawn has the same distribution; which tokens are drawn under a seed changes."""

    tokens: int = 0
    """Most tokens that are guessed for a step; 0: none. 4 pay where few sessions run at a low
    temperature; many at temperature 1 lose (`dynatok bench drafts`)."""
    method: Literal["seen", "ngram"] = "seen"
    """Where guesses come from: `seen` (all texts that the engine has seen, also what a session
    wrote before it started over; silent where it is seldom right), vLLM's `ngram` (the same text).
    """

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= MOST_DRAFTS:
            raise ValueError(
                f"drafts.tokens is {self.tokens}; write 0 (none) to {MOST_DRAFTS}, 4 for example"
            )


def check_drafts(
    drafts: DraftsConfig, sampling: SamplingConfig, engine: Mapping[str, Any], where: str = ""
) -> None:
    """ValueError for what vLLM cannot do beside drafts; `where` begins the names of the fields."""
    if engine.get("speculative_config"):
        raise ValueError(
            f"{where}engine.speculative_config: write {where}drafts: {{tokens: 4}} instead, of "
            "which the audit knows"
        )
    if not drafts.tokens:
        return
    without = f"leave it out, or write {where}drafts: {{tokens: 0}}"
    if sampling.min_p:
        raise ValueError(
            f"{where}sampling.min_p is {sampling.min_p}: vLLM cannot sample with it beside "
            f"drafts; {without}"
        )
    for name in NOT_WITH_DRAFTS:
        if engine.get(name):
            raise ValueError(f"{where}engine.{name}: vLLM has no {name} beside drafts; {without}")


class EvaluationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling of held-out tasks before, during and after training; same tasks, same seeds."""

    enabled: bool = True
    """Whether to evaluate at all."""
    tasks: int = 160
    """How many held-out tasks to sample."""
    seed: int = 1234
    """Chooses the tasks and the draws."""
    temperature: float = 1.0
    """Divides the logits when evaluating."""
    every: int = 0
    """Evaluate beside collecting every so many weight versions; 0: before and after only. Passes
    then run under the weights of their time."""

    def __post_init__(self) -> None:
        _positive("actor.evaluation", tasks=self.tasks)
        if self.every < 0:
            raise ValueError(f"actor.evaluation.every is {self.every}; write 0 or more")
        if self.temperature < 0:
            raise ValueError(f"actor.evaluation.temperature is {self.temperature}; write 0 or more")
        if self.seed < 0:
            raise ValueError(f"actor.evaluation.seed is {self.seed}; write 0 or more")


class ActorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one actor process needs."""

    run_dir: str = ""
    """Run folder; the supervisor fills it in."""
    run_id: str = ""
    """Name of the run; actor and learner must agree on it. The supervisor fills it in."""
    name: str = "actor"
    """Name of this actor in the run: no two have the same. Another one may join at any time:
    `dynatok actor RUN/actor.yaml --name actor-7 --seed 7`."""
    model: str = "tiny"
    """`tiny` (the embedded model), a folder, or a name on the model hub."""
    seed: int = 0
    """Chooses the training tasks and the draws."""
    protocol: ProtocolConfig = ProtocolConfig()
    """How to reach the learner; the supervisor fills it in."""
    sessions: int = 32
    """Live sessions at once."""
    tasks: str = "tiny"
    """Where tasks come from: `tiny` (the embedded world), a .jsonl or .yaml file or a folder of
    them, module:name, hub:owner/name."""
    responses_per_task: int = 1
    """Responses to each task, begun one after the other, with draws of their own. Objectives that
    compare them (`grpo`, `hapo`, `decoupled`) need 2 or more."""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn."""
    reuse: ReusePolicy = "exact"
    """What a pass takes from the cache after an edit: `exact` (an unchanged prefix), `sticky` (all
    but the edited slot), `refresh:64` (sticky, but the last 64 tokens are computed anew;
    `refresh:0-128` draws how many for every pass), `turned` (sticky, whose slots may grow and
    shrink) or `none`. A sticky edit takes a second place in the engine for one step: where
    `engine.max_num_seqs` is set, let it be above `sessions`."""
    placement: Literal["head", "late"] = "head"
    """Where slots stand: `head` (as the template says) or `late` (behind the response so far)."""
    chat_template_kwargs: dict[str, Any] = {}
    """Options of the model's chat template (`enable_thinking: false`), for tasks that are chat."""
    system_prompt: str = ""
    """Opens chats that have no system message of their own; empty: none."""
    on_weights: OnWeights = "restart"
    """New weights make passes in flight `restart` or `continue` on the KV of the old ones."""
    drafts: DraftsConfig = DraftsConfig()
    """Guesses of the next tokens, checked several at a time; off: `tokens: 0`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation before and after."""
    engine: dict[str, Any] = {}
    """vLLM's engine arguments, passed through (`max_model_len: 512`, `dtype: bfloat16`, ...).
    `dtype: auto` on a CPU: bfloat16 where that is faster, decided when the configuration is read;
    what the learner must agree to follows."""
    environment: dict[str, str] = {}
    """Environment variables of the engine, for example `VLLM_CPU_OMP_THREADS_BIND: "0"`."""
    seeded: bool = True
    """Draw every pass with a seed of its own, so that its tokens do not depend on its batch (with
    `drafts` they do: what is guessed depends on what others wrote)."""
    weights_timeout: float = 60.0
    """Seconds for one weight update, from pausing to the canary's answer; and how long fetching may
    stand still (it may take as long as it goes on)."""
    finish_timeout: float = 60.0
    """Seconds to wait for the learner's last weights, and for what is still to be sent."""
    journal_bytes: int = 2**30
    """Most that the journal of trajectories, kept until the learner holds them, may take on disk.
    When it is full, the actor starts nothing more until there is room."""
    prometheus_port: int = 0
    """Port of this machine that serves the numbers to Prometheus; 0 takes a free one (see
    `RUN/prometheus`), -1 none."""
    report_every: float = 2.0
    """Seconds between two records of the actor's numbers."""

    def __post_init__(self) -> None:
        check_name("actor.name", self.name)
        parse_policy(self.reuse, "actor.reuse")
        check_drafts(self.drafts, self.sampling, self.engine, "actor.")
        _positive(
            "actor",
            sessions=self.sessions,
            responses_per_task=self.responses_per_task,
            journal_bytes=self.journal_bytes,
            weights_timeout=self.weights_timeout,
            finish_timeout=self.finish_timeout,
            report_every=self.report_every,
        )
