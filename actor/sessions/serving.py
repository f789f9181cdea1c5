"""The gate between sessions and the engine: which weights serve now, and who is generating.

A pass runs under one weight version and one cache salt. The salt changes with every version and
every attempt to load one, so no pass ever takes KV that other weights computed. Closing the gate
holds new passes back. What it does with those in flight is `on_weights`:

- `restart`: they are aborted, and their sessions keep the tokens. Every token is sampled from KV
  of its own weights: the learner rebuilds it exactly.
- `continue`: they go on, on the KV that the old weights computed, and the engine labels each token
  with the weights that sampled it. A pass that two versions sampled is recorded as such
  (`Pass.weight_versions`). Its later tokens saw KV that no single set of weights computes, so the
  learner may train on them as on any other stale token, but can compare log-probabilities only
  for passes of one version. Until the new weights have proved themselves, no pass hands anything
  over, neither at its end nor as a stream; if they fail, what they sampled is thrown away. So is
  what they sampled of a pass that had no token before them; one that streams restarts instead.
  What a stream has handed over is therefore never taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actor.config import OnWeights, SamplingConfig
from actor.sessions.generation import (
    CacheUse,
    Engine,
    Generated,
    OnStart,
    OnTokens,
    Request,
    cut_labels,
)
from actor.sessions.moved import Run
from dynatok_online.policy import NOTHING, Refresh


class Interrupt:
    """Ends one pass from outside. The first reason counts; none does if the pass ended by itself
    before."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._request: Request | None = None

    async def now(self, reason: str) -> None:
        """End the pass, also one that is just being submitted."""
        if self.reason is None:
            self.reason = reason
            if self._request is not None:
                await self._request.abort()

    async def attach(self, request: Request) -> None:
        """The pass has its request."""
        self._request = request
        if self.reason is not None:
            await request.abort()


@dataclass(frozen=True, slots=True)
class Keep:
    """What a sticky pass keeps of the one before it."""

    session: str
    previous: str = ""
    """Name of the pass whose blocks are kept; empty: none."""
    held: int = 0
    """How many of its positions count."""
    anew: tuple[int, ...] = ()
    """Blocks among them that are computed anew although they hold the same tokens."""
    refresh: Refresh = NOTHING
    """What `held` and `anew` follow from."""
    heads: tuple[int, ...] = ()
    """Lengths of the beginnings that are prefilled first (see `block_names.heads`)."""
    moves: tuple[Run, ...] | None = None
    """Which of its positions stood where before; None: what is kept stays where it was."""


@dataclass(frozen=True, slots=True)
class Head:
    """A beginning of a pass's text that was prefilled in a request of its own."""

    name: str
    length: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a pass gave, and under which weights it ran."""

    generated: Generated
    version: int
    cache_salt: str
    name: str = ""
    """The request's name in the engine's cache log."""
    heads: tuple[Head, ...] = ()
    continued: bool = False
    """Whether it may have continued under later weights."""


class _Stream:
    """Hands a pass's tokens on as they come, but for those that are held back."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self._on_tokens = on_tokens
        self._waiting: list[int] = []
        self._holding = False
        self.given = 0
        """Tokens handed on."""

    def __call__(self, token_ids: Sequence[int]) -> None:
        self._waiting += token_ids
        if not self._holding:
            self._give(self._waiting)

    def hold(self) -> None:
        """Hand nothing on until `release`."""
        self._holding = True

    def release(self) -> None:
        """Hand on what has come meanwhile."""
        self._holding = False
        self._give(self._waiting)

    def end(self, token_ids: Sequence[int]) -> None:
        """The pass has ended, and these are all its tokens that count."""
        assert self.given <= len(token_ids), "tokens were handed on that do not count"
        self._give(token_ids[self.given :])

    def _give(self, token_ids: Sequence[int]) -> None:
        self._waiting = []
        if token_ids:
            self.given += len(token_ids)
            self._on_tokens(token_ids)


class Serving:
    """An engine behind a gate. It is closed until `open` is called for the first time."""

    def __init__(self, engine: Engine, run_id: str, on_weights: OnWeights = "restart") -> None:
        self.engine = engine
        self.on_weights = on_weights
        self.version = -1
        """Weight version that serves; -1: none yet."""
        self.cache_salt = ""
        self.run_id = run_id
        self._salts = 0
        self._opened = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._passes: dict[Interrupt, _Stream | None] = {}
        """Those in flight, each with its stream if it has one."""
        self._trial = self._label = ""
        self._rejected: set[str] = set()
        self._decided = asyncio.Event()
        self._decided.set()
        self._requests = 0
        self._sessions = 0

    def new_salt(self, version: int) -> str:
        """A cache salt that was never used before."""
        self._salts += 1
        return f"{self.run_id}/{version}/{self._salts}"

    @property
    def is_open(self) -> bool:
        """Whether passes may start."""
        return self._opened.is_set()

    def new_label(self, version: int) -> str:
        """The label of the tokens that weights under trial sample; it begins with the version."""
        self._trial = str(version)
        if self.on_weights == "continue":
            self._trial += f".{self._salts}"  # an attempt that fails must not look like the next
        return self._trial

    def open(self, version: int, cache_salt: str) -> None:
        """Let passes start, under these weights."""
        self.version, self.cache_salt = version, cache_salt
        self._label = self._trial
        self._decided.set()
        for stream in self._passes.values():
            if stream is not None:
                stream.release()
        self._opened.set()

    async def close(self) -> int:
        """Hold passes back; end those in flight, unless they are to continue. How many ended."""
        self._opened.clear()
        if self.on_weights == "restart":
            restarted = await self._end_passes()
            await self._idle.wait()
            return restarted
        self._decided.clear()
        restarted = 0
        for interrupt, stream in list(self._passes.items()):
            if stream is None:
                continue
            stream.hold()
            if not stream.given:
                restarted += 1
                await interrupt.now("weights")
        return restarted

    async def reject(self) -> None:
        """The weights under trial are wrong: nothing that they sampled counts."""
        self._rejected.add(self._trial)
        self._decided.set()
        await self._end_passes()
        await self._idle.wait()

    async def _end_passes(self) -> int:
        passes = list(self._passes)
        await asyncio.gather(*(one.now("weights") for one in passes))
        return len(passes)

    async def _accepted(self, generated: Generated, label: str, interrupt: Interrupt) -> Generated:
        """What counts of a pass that was submitted under the weights of `label`.

        Nothing, where it had no token yet when they changed: only part of its prompt may have been
        computed then. Otherwise all up to the first token of weights that were rejected.
        """
        if self.on_weights == "restart":
            return generated
        await self._decided.wait()
        labels = generated.weight_labels
        count = 0
        if labels and labels[0][0] == label:
            for one, length in labels:
                if one in self._rejected:
                    break
                count += length
        if count == len(generated.token_ids):
            return generated
        await interrupt.now("weights")
        return replace(
            generated,
            token_ids=generated.token_ids[:count],
            logprobs=generated.logprobs[:count],
            finish_reason="abort",
            weight_labels=cut_labels(labels, 0, count),
        )

    async def ready(self) -> None:
        """Wait until passes may start."""
        while not self._opened.is_set():
            await self._opened.wait()

    async def run(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig,
        max_tokens: int,
        seed: int | None,
        interrupt: Interrupt,
        read_cache: bool = True,
        urgent: bool = False,
        keep: Keep | None = None,
        on_start: OnStart | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Served:
        """One pass, from submission to its end. The gate must be open: call `ready` first.

        There must be no `await` between `ready` and this call, so that what is fed is what the
        session knows at the moment of submission. Without `on_tokens` the pass does not stream.
        An `urgent` one goes before those that are not.
        """
        assert self._opened.is_set(), "a pass was started while the gate was closed"
        version, salt, label = self.version, self.cache_salt, self._label
        self._requests += 1
        name = f"{self.run_id}/{self._requests}"
        keep = Keep("") if keep is None else keep
        cache = CacheUse(
            salt,
            name,
            read_cache,
            keep.session,
            keep.previous,
            keep.held,
            keep.anew,
            keep.moves,
            urgent,
        )
        stream = None if on_tokens is None else _Stream(on_tokens)
        self._passes[interrupt] = stream
        self._idle.clear()
        heads: list[Request] = []
        served: Served | None = None
        try:
            for i, length in enumerate(keep.heads):
                use = replace(cache, name=f"{name}.{i}")
                heads.append(await self.engine.prefill(token_ids[:length], use))
            request = await self.engine.submit(
                token_ids,
                request_id=name,
                sampling=sampling,
                max_tokens=max_tokens,
                seed=seed,
                cache=cache,
                stream=on_tokens is not None,
            )
            await interrupt.attach(request)
            generated = await request.wait(stream, on_start)
            generated = await self._accepted(generated, label, interrupt)
            if stream is not None:
                stream.end(generated.token_ids)
            if not generated.token_ids:
                served = Served(generated, version, salt, name)
                return served
            # They went into the engine first, so they are done where this one has a token.
            done = [(await heads.pop(0).wait()).num_cached_tokens for _ in keep.heads]
            results = (
                Head(f"{name}.{i}", length, cached)
                for i, (length, cached) in enumerate(zip(keep.heads, done, strict=True))
            )
            continued = self.on_weights == "continue"
            served = Served(generated, version, salt, name, tuple(results), continued)
            return served
        finally:
            if served is None and self.engine.cache_log is not None:
                self.engine.cache_log.forget(
                    [name, *(f"{name}.{i}" for i in range(len(keep.heads)))]
                )
            for head in heads:
                await head.abort()
            del self._passes[interrupt]
            if not self._passes:
                self._idle.set()

    def new_session(self) -> str:
        """A name for a sticky session that was never used before."""
        self._sessions += 1
        return f"{self.run_id}/session-{self._sessions}"
