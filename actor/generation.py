"""What the rest of the actor needs from an inference engine.

`actor.engine` fills it with vLLM; tests fill it with a fake. A request that ends, for whatever
reason, hands over every token that had arrived; nothing arrives after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actor.config import SamplingConfig
from protocol.messages import WeightManifest

OnTokens = Callable[[Sequence[int]], None]
"""Called with each bunch of new token ids while a request streams."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What one request gave."""

    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each token under the model's own distribution: temperature 1, nothing
    cut off. It is what a learner computes, whatever the sampling parameters were."""
    num_cached_tokens: int
    """Prompt tokens whose KV came from the cache; 0 if it ended before its first token."""
    finish_reason: str
    """`stop` (a stop token, kept), `length` or `abort`."""
    weight_labels: tuple[tuple[str, int], ...]
    """(label of the weights, how many tokens they sampled), in order."""


class Request(Protocol):
    """A request under way."""

    async def wait(self, on_tokens: OnTokens | None = None) -> Generated:
        """Wait for its end. `on_tokens` sees tokens as they come if it was submitted to stream."""
        ...

    async def abort(self) -> None:
        """End it now: `wait` returns what has arrived. Harmless when it has ended."""
        ...


class Engine(Protocol):
    """Generates tokens."""

    block_size: int
    max_model_len: int

    async def submit(
        self,
        token_ids: Sequence[int],
        *,
        request_id: str,
        sampling: SamplingConfig,
        max_tokens: int,
        seed: int | None,
        cache_salt: str,
        stream: bool,
    ) -> Request:
        """Start a request. Only requests of the same `cache_salt` share KV."""
        ...


class WeightTarget(Protocol):
    """An engine whose weights can be replaced."""

    async def pause(self) -> None:
        """Stop scheduling; requests under way keep their place."""
        ...

    async def resume(self) -> None:
        """Schedule again."""
        ...

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Load a complete set of weights; raises, and stays loadable, where that fails."""
        ...

    async def set_weight_label(self, label: str) -> None:
        """Label the tokens sampled from now on."""
        ...

    async def prompt_logprobs(self, token_ids: Sequence[int], *, cache_salt: str) -> list[float]:
        """log p(token i | tokens before it) for i = 1 .. n-1, from an ordinary request."""
        ...
