"""What a run takes of memory, added up before anything starts: no torch, no model, only sizes.

Of the learner, for each rank (P parameters, T of them trained, N ranks; w bytes of a weight: 2 in
half precision under DeepSpeed, else 4):

    weights           w P; ZeRO 3: w P / N, and up to 1e9 of them gathered for a layer's work
    gradients         w T; ZeRO 2 and 3: w T / N, and what is on its way: a bucket, or the share
                      once more in float32 for the step
    optimizer states  8 T (Adam); under DeepSpeed with a float32 copy, 12 T; ZeRO 1 to 3: / N
    activations       4 or 2 bytes of (6 h + 4 i + 2 q + 2 k) L + 3 h numbers a token; with
                      gradient_checkpointing h L, and one layer's
    logits            those of one chunk
    weights on their way  two buffers of a version, once on the learner's host (shm)
    process           what torch, transformers and DeepSpeed take by themselves

A lower bound: what allocators keep, and what a backward makes and frees, is not in it.
docs/scaling.md has measured peaks beside it; `tests/launch/test_memory_sum.py` holds it against
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from actor.config import ActorConfig
from learner.config import LearnerConfig
from learner.lora import rank_of

GB = 1e9
LEARNER_PROCESS = 0.75 * GB
"""Of one rank, before it has a model."""
ACTOR_PROCESS = 2.2 * GB
"""Of an actor and its engine, before they have a model."""
LOGITS = 2**25
LIVE = 1e9
BUCKET = 5e8
"""DeepSpeed's own defaults of `stage3_max_live_parameters` and `reduce_bucket_size`."""

Where = Literal["device", "host"]
_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a decoder."""

    width: int
    layers: int
    inner: int
    """Of a layer's feed-forward part, of all its experts."""
    queries: int
    """Query heads times their width."""
    keys: int
    """Key heads times their width."""
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers configuration. Raises ValueError where that does not say it."""
        text = config.get_text_config()
        try:
            heads = text.num_attention_heads
            head = getattr(text, "head_dim", None) or text.hidden_size // heads
            inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
            for name in ("num_experts", "num_local_experts", "n_routed_experts"):
                if experts := getattr(text, name, None):
                    inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
            return cls(
                width=text.hidden_size,
                layers=text.num_hidden_layers,
                inner=inner,
                queries=heads * head,
                keys=(getattr(text, "num_key_value_heads", None) or heads) * head,
                vocabulary=text.vocab_size,
                tied=bool(config.tie_word_embeddings),
            )
        except AttributeError as error:
            raise ValueError(f"the model's configuration does not say its sizes: {error}") from None

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's matrices, under their usual names."""
        h, i, q, k = self.width, self.inner, self.queries, self.keys
        return {
            "q_proj": (h, q),
            "k_proj": (h, k),
            "v_proj": (h, k),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def parameters(self) -> int:
        """All of them."""
        layer = sum(a * b for a, b in self.linear.values()) + 2 * self.width
        ends = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.layers * layer + ends + self.width

    def adapters(self, lora: Mapping[str, Any]) -> int:
        """Parameters of LoRA's adapters; layers of unusual names count as none."""
        asked = lora.get("target_modules") or ["q_proj", "v_proj"]
        names = self.linear.keys() if isinstance(asked, str) else {n.split(".")[-1] for n in asked}
        sizes = [sum(self.linear[name]) for name in names if name in self.linear]
        return self.layers * rank_of(lora) * sum(sizes)

    def activations(self, tokens: int, checkpointing: bool) -> float:
        """Numbers that a forward keeps for its backward."""
        layer = 6 * self.width + 4 * self.inner + 2 * self.queries + 2 * self.keys
        if checkpointing:
            return tokens * (self.width * self.layers + layer + 3 * self.width)
        return tokens * (layer * self.layers + 3 * self.width)


class Term(NamedTuple):
    """One summand."""

    what: str
    nbytes: float
    where: Where = "device"
    per_rank: bool = True
    """False: it is there once on the host, however many ranks there are."""


class Sum(NamedTuple):
    """What a process takes."""

    terms: tuple[Term, ...]

    def of(self, where: Where | None = None, ranks: int = 1) -> float:
        """Bytes of one place (None: both), of so many ranks."""
        return sum(
            one.nbytes * (ranks if one.per_rank else 1)
            for one in self.terms
            if where in (None, one.where)
        )

    def spelled_out(self, where: Where | None = None) -> str:
        """`16.1 GB = weights 16.1 + ...`, of one rank."""
        found = [one for one in self.terms if where in (None, one.where) and one.nbytes > 5e6]
        terms = [f"{one.what} {one.nbytes / GB:.2f}" for one in found]
        return f"{self.of(where) / GB:.2f} GB = {' + '.join(terms)}"


def learner_sum(
    shape: Shape, config: LearnerConfig, tokens: int, deepspeed: Mapping[str, Any] | None
) -> Sum:
    """One rank. `tokens`: of the longest row. `deepspeed`: its configuration, read; None: none."""
    training, lora = config.training, config.lora
    ranks, everything = config.ranks, shape.parameters
    trained = shape.adapters(lora) if lora else everything
    if lora:
        everything += trained
    zero = dict((deepspeed or {}).get("zero_optimization") or {})
    stage = int(zero.get("stage", 0)) if deepspeed else 0
    half = bool(training.get("bf16") is True or training.get("fp16"))
    kept = dict(training.get("model_init_kwargs") or {}).get("dtype", "float32")
    w = 2 if half and deepspeed else _BYTES.get(str(kept), 4)
    share = trained / ranks if stage >= 1 else trained

    weights_at: Where = "host" if _offloaded(zero, "offload_param") else "device"
    states_at: Where = "host" if _offloaded(zero, "offload_optimizer") else "device"
    terms = [Term("weights", w * everything / (ranks if stage == 3 else 1), weights_at)]
    if stage == 3:
        live = min(everything, float(zero.get("stage3_max_live_parameters", LIVE)))
        terms.append(Term("gathered weights", w * live))
    if stage >= 2:
        moving = w * min(trained, float(zero.get("reduce_bucket_size", BUCKET)))
        if states_at == "device":
            moving = max(moving, 4 * share)
        terms.append(Term("gradients", w * share, states_at))
        terms.append(Term("gradients on their way", moving))
    else:
        terms.append(Term("gradients", w * trained))
    terms.append(Term("optimizer states", (12 if deepspeed and stage else 8) * share, states_at))
    checkpointing = bool(training.get("gradient_checkpointing"))
    size = 2 if half else 4
    terms.append(
        Term(f"activations of {tokens} tokens", size * shape.activations(tokens, checkpointing))
    )
    rows = min(tokens, 1024, max(1, LOGITS // shape.vocabulary))
    terms.append(Term("logits", 4.0 * rows * shape.vocabulary))
    sent = trained if config.weight_sync == "adapter" else shape.parameters
    if config.weight_transport != "folder":
        ring = 2.0 * sent * _BYTES[config.weight_dtype]
        terms.append(Term("weights on their way", ring, "host", per_rank=False))
    terms.append(Term("process", LEARNER_PROCESS, "host"))
    return Sum(tuple(terms))


def actor_sum(shape: Shape, config: ActorConfig, gpu: bool) -> Sum:
    """One actor with its engine. On a GPU, the engine takes its share of the card anyway."""
    dtype = str(config.engine.get("dtype", "bfloat16" if gpu else "float32"))
    w = _BYTES.get(dtype, 2 if gpu else 4)
    kv = float(config.engine.get("kv_cache_memory_bytes") or (0 if gpu else 256 * 2**20))
    return Sum(
        (
            Term("weights", w * shape.parameters),
            Term("KV cache", kv),
            Term("processes", ACTOR_PROCESS, "host"),
        )
    )


def longest_row(config: LearnerConfig, actor: ActorConfig) -> tuple[int, int]:
    """Tokens of the shortest row that a step may need, and of the longest that it may make."""
    budget = config.training.get("max_row_tokens", 16384)
    longest = actor.engine.get("max_model_len")
    if not isinstance(longest, int):
        return min(512, budget), budget
    shares = config.ranks * config.training.get("gradient_accumulation_steps", 1)
    batch = max(1, math.ceil(config.trajectories_per_step / shares))
    return min(longest, budget), min(budget, 2 * longest * batch)


def _offloaded(zero: Mapping[str, Any], name: str) -> bool:
    return dict(zero.get(name) or {}).get("device", "none") == "cpu"


def together(sums: Sequence[tuple[Sum, int]], where: Where | None = None) -> float:
    """Bytes of several processes, each so many times."""
    return sum(one.of(where, count) for one, count in sums)
