"""What the rest of the actor needs from an inference engine.

`actor.engine` fills it with vLLM; tests fill it with a fake. A request that ends, for whatever
reason, hands over every token that had arrived; nothing arrives after that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actor.config import SamplingConfig
from actor.sessions.moved import Part, Run
from protocol.wire.messages import PlacedWeights

OnTokens = Callable[[Sequence[int]], None]
"""Called with each bunch of new token ids while a request streams."""
OnStart = Callable[[int], None]
"""Called with the number of cached tokens as soon as a streaming request has its first token."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What one request may take from the cache, and the name under which the cache reports on it.

    A request of a sticky session takes, besides an unchanged prefix, every block that the request
    `previous` of its session held with the same tokens at the same positions, whatever stands
    before it by now.
    """

    salt: str
    """Only requests of one salt share KV."""
    name: str = ""
    """Unique name of this request in `Engine.cache_log`; empty: nobody asks."""
    read: bool = True
    """False: everything is computed anew."""
    session: str = ""
    """Sticky session that this request belongs to; empty: exact reuse."""
    previous: str = ""
    """Name of the request whose blocks the session keeps; empty: none."""
    held: int = 0
    """How many positions of `previous` count as its own."""
    anew: tuple[int, ...] = ()
    """Blocks among them that do not count either."""
    moves: tuple[Run, ...] | None = None
    """Which positions of this request stood where in `previous`: it takes those, their keys turned
    on to where they stand now. None: it takes what stands at the same positions."""
    urgent: bool = False
    """It goes before others, and no block of it is taken for them."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The engine gave a request its blocks: at its start, and again after each preemption."""

    tokens: int
    """How many tokens the request had then: what was fed, and what it had sampled before."""
    kept: tuple[int, ...]
    """Block indices that a sticky session kept although something before them had changed."""
    reused: tuple[bytes, ...]
    """Names of the blocks that it found in the cache, from position 0 on."""
    computed: tuple[bytes, ...]
    """Names of the blocks that it filled itself, following them."""
    moved: Mapping[int, tuple[Part, ...]] = field(default_factory=dict)
    """Of those kept ones that have moved, what they are made of."""


class EventsLost(Exception):
    """Cache events are gone for good, and a request's may be among them: nobody can audit it."""


class CacheLog(Protocol):
    """What happened to each request's blocks, from the engine's own cache events."""

    @property
    def lost_batches(self) -> int:
        """Batches of cache events that are gone for good."""
        ...

    async def blocks_of(self, name: str, full_blocks: int) -> tuple[Scheduled, ...] | None:
        """What happened to a request that ended with so many full blocks; None: not reported.

        Raises `EventsLost` for a request that was in flight when events were lost.
        """
        ...

    def forget(self, names: Sequence[str]) -> None:
        """These requests will not be asked for again."""
        ...


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


def cut_labels(
    labels: Sequence[tuple[str, int]], start: int, stop: int
) -> tuple[tuple[str, int], ...]:
    """The weight labels of tokens `start .. stop`."""
    out, at = [], 0
    for label, length in labels:
        count = min(stop, at + length) - max(start, at)
        if count > 0:
            out.append((label, count))
        at += length
    return tuple(out)


class Request(Protocol):
    """A request in flight."""

    async def wait(
        self, on_tokens: OnTokens | None = None, on_start: OnStart | None = None
    ) -> Generated:
        """Wait for its end. If it was submitted to stream, `on_start` hears of its first token
        and `on_tokens` sees tokens as they come.
        """
        ...

    async def abort(self) -> None:
        """End it now: `wait` returns what has arrived. Harmless when it has ended."""
        ...


class Engine(Protocol):
    """Generates tokens."""

    block_size: int
    max_model_len: int
    unreported: int
    """A block that one of so many last positions of a request filled may be missing in the cache
    events: those that its last step computed."""

    @property
    def cache_log(self) -> CacheLog | None:
        """What became of each request's blocks; None: the engine reports no cache events."""
        ...

    async def submit(
        self,
        token_ids: Sequence[int],
        *,
        request_id: str,
        sampling: SamplingConfig,
        max_tokens: int,
        seed: int | None,
        cache: CacheUse,
        stream: bool,
    ) -> Request:
        """Start a request."""
        ...

    async def prefill(self, token_ids: Sequence[int], cache: CacheUse) -> Request:
        """Start a request that only fills the cache; the one token that it samples is void.

        One that is submitted right before another shares the engine's step with it.
        """
        ...

    def end_session(self, session: str) -> None:
        """A sticky session will not send requests any more."""
        ...


class WeightTarget(Protocol):
    """An engine whose weights can be replaced."""

    async def pause(self) -> None:
        """Stop scheduling; requests in flight keep their place."""
        ...

    async def resume(self) -> None:
        """Schedule again."""
        ...

    async def load_weights(self, manifest: PlacedWeights) -> None:
        """Load a complete set of weights, or of adapters; raises, and stays loadable, where that
        fails."""
        ...

    async def set_weight_label(self, label: str) -> None:
        """Label the tokens sampled from now on."""
        ...

    async def prompt_logprobs(self, token_ids: Sequence[int], *, cache_salt: str) -> list[float]:
        """log p(token i | tokens before it) for i = 1 .. n-1, from an ordinary request."""
        ...
