"""vLLM's engine arguments: what suits us where the user says nothing, and what we refuse."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from actor.config import DraftsConfig, SamplingConfig, check_drafts
from actor.engine.names import PROPOSER, WEIGHT_BACKEND
from dynatok_online.policy import parse_policy

MIB = 1 << 20
REFUSED = {
    "kv_events_config": "the actor reads the cache events itself, to audit what was reused",
    "kv_transfer_config": "vLLM counts what a connector brings as cached, but does not report it "
    "among its cache events, so nobody could audit it",
}
"""Engine arguments that we cannot work with, and why."""


def engine_arguments(
    model: str,
    seed: int,
    given: Mapping[str, Any],
    drafts: DraftsConfig = DraftsConfig(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """The arguments for `AsyncEngineArgs`; those in `given` have precedence over our defaults.

    Raises ValueError for an argument that vLLM does not know or that we cannot work with.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    for name, why in REFUSED.items():
        if given.get(name):
            raise ValueError(f"actor.engine.{name}: {why}; leave it out")
    check_drafts(drafts, SamplingConfig(), given, "actor.")
    merged = _defaults(on_cpu) | {"model": model, "seed": seed} | dict(given)
    known = AsyncEngineArgs.__dataclass_fields__
    for name in merged:
        if name not in known:
            raise ValueError(_unknown_argument(name, known))
    if merged["logprobs_mode"] != "raw_logprobs":
        raise ValueError(
            f"actor.engine.logprobs_mode is {merged['logprobs_mode']!r}; the learner compares "
            "raw log-probabilities: leave it out"
        )
    if drafts.tokens:
        merged["speculative_config"] = _speculative(drafts)
    return merged


def _speculative(drafts: DraftsConfig) -> dict[str, Any]:
    if drafts.method == "seen":
        return {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": drafts.tokens,
        }
    return {
        "method": "ngram",
        "num_speculative_tokens": drafts.tokens,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 5,
    }


def check_reuse(config: Any, policies: Iterable[str]) -> None:
    """ValueError for a reuse policy that the engine of this `VllmConfig` cannot follow."""
    for policy in map(parse_policy, policies):
        if policy.keeps and (why := why_not_sticky(config)):
            raise ValueError(f"reuse is {policy.text!r}, but {why}; write exact")
        if policy.turns and (why := why_not_turned(config)):
            raise ValueError(f"reuse is {policy.text!r}, but {why}; write sticky")


def why_not_sticky(config: Any) -> str:
    """Why the engine of this `VllmConfig` cannot keep blocks behind a changed one; "" if it can."""
    if not config.cache_config.enable_prefix_caching:
        return "actor.engine.enable_prefix_caching is off"
    if config.model_config.get_sliding_window() is not None or config.model_config.is_hybrid:
        return "it needs full attention in every layer, and this model has other layers"
    return ""


def why_not_turned(config: Any) -> str:
    """Why the engine of this `VllmConfig` cannot keep what has moved; "" if it can."""
    from vllm.platforms import current_platform

    from dynatok_online.attention.turning import why_not_turned as why_not

    if not current_platform.is_cpu():
        return "what has moved is kept by vLLM's CPU build only so far"
    if config.parallel_config.world_size > 1:
        return "it is written for one worker, and actor.engine asks for several"
    if config.cache_config.cache_dtype != "auto":
        return f"actor.engine.kv_cache_dtype is {config.cache_config.cache_dtype!r}: leave it out"
    return why_not(config.model_config.hf_text_config)


def stop_token_ids(model_config: Any) -> tuple[int, ...]:
    """End-of-sequence ids from the model's generation config, else from its config."""
    generation = model_config.try_get_generation_config()
    found = generation.get("eos_token_id")
    if found is None:
        found = getattr(model_config.hf_text_config, "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def _defaults(on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "weight_transfer_config": {"backend": WEIGHT_BACKEND},
        "disable_log_stats": True,
        # People who edit go before sessions that collect.
        "scheduling_policy": "priority",
        # The model's own sampling defaults (top_p and the like) must not creep in.
        "generation_config": "vllm",
    }
    if on_cpu:
        arguments |= {
            "dtype": "float32",
            "block_size": 32,
            "kv_cache_memory_bytes": 256 * MIB,
            # Compiling takes longer than a short run gains from it.
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
        }
    return arguments


def _unknown_argument(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `vllm serve --help` for its arguments"
    return f"actor.engine: vLLM has no engine argument {name!r}; {hint}"
