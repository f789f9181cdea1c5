"""Requests to vLLM: what they ask for, and what comes back.

Requests that nobody watches ask for their final output only: one wake-up per request instead of
one per token. Aborting such a request still returns every token that had arrived, because vLLM's
front end collects them; it drops whatever the engine core sends afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from actor.config import SamplingConfig
from actor.sessions.generation import Generated, OnStart, OnTokens

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector


def sampling_params(
    sampling: SamplingConfig, stop_token_ids: tuple[int, ...], *, stream: bool
) -> SamplingParams:
    """What a pass asks for. Its own copy: until vLLM has taken it, another may be made."""
    return copy(_sampling_params(sampling, stop_token_ids, stream))


@lru_cache(maxsize=64)
def _sampling_params(
    sampling: SamplingConfig, stop_token_ids: tuple[int, ...], stream: bool
) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=None if sampling.ignore_eos else list(stop_token_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def prefill_params() -> SamplingParams:
    """What a request asks for that only fills the cache; a copy of its own."""
    return copy(_prefill_params())


@lru_cache(maxsize=1)
def _prefill_params() -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # Drawn like everybody's: a batch that is part greedy is sampled twice over.
    return SamplingParams(
        temperature=1.0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def scoring_params() -> SamplingParams:
    """What a request asks for that reads the log-probabilities of its own prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


class VllmRequest:
    """A request in flight in vLLM."""

    def __init__(
        self,
        llm: AsyncLLM,
        queue: RequestOutputCollector,
        scheduled: Callable[[], None] = lambda: None,
    ) -> None:
        """`scheduled` is told once the engine has surely scheduled it."""
        self._llm = llm
        self._queue = queue
        self._scheduled = scheduled

    async def wait(
        self, on_tokens: OnTokens | None = None, on_start: OnStart | None = None
    ) -> Generated:
        """Wait for its end; see `generation.Request`."""
        token_ids: list[int] = []
        logprobs: list[float] = []
        try:
            while True:
                # Drain without awaiting where possible: fewer task switches under load.
                output = self._queue.get_nowait() or await self._queue.get()
                completion = output.outputs[0]
                new = list(completion.token_ids)
                if new:
                    if not token_ids:
                        self._scheduled()
                    if on_start is not None and on_tokens is not None and not token_ids:
                        on_start(output.num_cached_tokens or 0)
                    token_ids += new
                    if completion.logprobs is not None:  # a prefill asks for none
                        logprobs += _sampled_logprobs(completion.logprobs, len(new))
                    if on_tokens is not None:
                        on_tokens(new)
                if output.finished:
                    return _generated(output, token_ids, logprobs)
        except BaseException:
            await self.abort()
            raise
        finally:
            self._queue.close()

    async def abort(self) -> None:
        """End it now; see `generation.Request`."""
        await self._llm.abort(self._queue.request_id, internal=True)


def _sampled_logprobs(logprobs: Any, count: int) -> list[float]:
    """The sampled token's logprob stands first at each position of vLLM's flat container."""
    starts = logprobs.start_indices
    assert len(starts) == count, f"{len(starts)} logprobs for {count} tokens"
    return [logprobs.logprobs[start] for start in starts]


def _generated(output: RequestOutput, token_ids: list[int], logprobs: list[float]) -> Generated:
    completion = output.outputs[0]
    labels = tuple(
        (span.version, span.end - span.start)
        for span in completion.weight_versions or ()
        if span.end > span.start
    )
    return Generated(
        token_ids,
        logprobs,
        output.num_cached_tokens or 0,
        completion.finish_reason or "abort",
        labels,
    )


def prompt_logprobs(output: RequestOutput) -> list[float]:
    """log p(token i | tokens before it) for i = 1 .. n-1, of a request with `scoring_params`."""
    flat = output.prompt_logprobs
    starts, ends = flat.start_indices, flat.end_indices
    return [flat.logprobs[a] for a, b in zip(starts, ends, strict=True) if b > a]
