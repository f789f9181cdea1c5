"""A fake engine: deterministic tokens, a block cache, and aborts at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby

from actor.config import SamplingConfig
from actor.sessions.generation import (
    CacheUse,
    EventsLost,
    Generated,
    OnStart,
    OnTokens,
    Scheduled,
)
from protocol.wire.messages import WeightManifest

BLOCK = 4


class FakeRequest:
    """Samples one token per turn of the event loop (or as `engine.gate` allows)."""

    def __init__(
        self, engine: FakeEngine, fed: list[int], max_tokens: int, cache: CacheUse, head: bool
    ) -> None:
        self.engine = engine
        self.fed = fed
        self.max_tokens = max_tokens
        self.cache = cache
        self.token_ids: list[int] = []
        self.cached = 0
        self.kept: list[int] = []
        self.names: list[int] = []
        self.chain = 0
        self.finish = ""
        self.labels: list[str] = []
        if head:  # it shares a step with the request that follows it
            self._take_blocks()
            self._fill_blocks()
            self.token_ids, self.labels, self.finish = [0], [engine.label], "length"
            self.task = asyncio.ensure_future(asyncio.sleep(0))
        else:
            self.task = asyncio.ensure_future(self._generate())

    @property
    def salt(self) -> str:
        return self.cache.salt

    def block(self, j: int) -> tuple[int, ...]:
        return tuple([*self.fed, *self.token_ids][j * BLOCK : (j + 1) * BLOCK])

    def _take_blocks(self) -> None:
        """What is found in the cache, by the rule of `actor.sessions.block_names`."""
        before = self.engine.named.get(self.cache.previous) if self.cache.session else None
        self.chain = hash(self.cache.salt)
        for j in range((len(self.fed) - 1) // BLOCK if self.cache.read else 0):
            name = fresh = hash((self.chain, self.block(j)))
            if (
                before is not None
                and j < min(self.cache.held // BLOCK, len(before.names))
                and j not in self.cache.anew
                and before.block(j) == self.block(j)
                and before.names[j] in self.engine.blocks
            ):
                name = before.names[j]
            if name not in self.engine.blocks:
                break
            if name != fresh:
                self.kept.append(j)
            self.chain = name if name == fresh else hash((self.chain, "kept", name))
            self.names.append(name)
        self.cached = len(self.names) * BLOCK
        self.engine.named[self.cache.name] = self

    def _fill_blocks(self) -> None:
        for j in range(len(self.names), (len(self.fed) + len(self.token_ids)) // BLOCK):
            self.chain = hash((self.chain, self.block(j)))
            self.names.append(self.chain)
            self.engine.blocks.add(self.chain)

    async def _generate(self) -> None:
        await asyncio.sleep(0)
        self._take_blocks()
        while len(self.token_ids) < self.max_tokens:
            await self.engine.step(self)
            self._fill_blocks()
            token = self.engine.next_token([*self.fed, *self.token_ids])
            self.token_ids.append(token)
            self.labels.append(self.engine.label)
            if token == self.engine.stop_token:
                self.finish = "stop"
                return
        self.finish = "length"

    async def wait(
        self, on_tokens: OnTokens | None = None, on_start: OnStart | None = None
    ) -> Generated:
        seen = 0
        while not self.finish:
            await asyncio.sleep(0)
            if on_tokens is not None and len(self.token_ids) > seen:
                if not seen and on_start is not None:
                    on_start(self.cached)
                on_tokens(self.token_ids[seen:])
                seen = len(self.token_ids)
            if self.task.done() and not self.task.cancelled():
                self.task.result()
        for _ in range(self.engine.end_delay):
            await asyncio.sleep(0)
        n = len(self.token_ids)
        if on_tokens is not None and n > seen:
            on_tokens(self.token_ids[seen:])
        labels = tuple((label, len(list(run))) for label, run in groupby(self.labels))
        return Generated(
            list(self.token_ids), [-0.5] * n, self.cached if n else 0, self.finish, labels
        )

    async def abort(self) -> None:
        if not self.finish:
            self.finish = "abort"
            self.task.cancel()


class FakeCacheLog:
    """Says what the fake requests did; a test may write a lie into `lies`."""

    def __init__(self) -> None:
        self.named: dict[str, FakeRequest] = {}
        self.lies: dict[str, tuple[Scheduled, ...] | None] = {}
        self.lost: set[str] = set()
        self.lost_batches = 0
        self.forgotten: list[str] = []

    async def blocks_of(self, name: str, full_blocks: int) -> tuple[Scheduled, ...] | None:
        if name in self.lost:
            raise EventsLost("3 batches of cache events are lost")
        if name in self.lies:
            return self.lies[name]
        one = self.named[name]
        names = tuple(each.to_bytes(8, "big", signed=True) for each in one.names)
        cut = one.cached // BLOCK
        return (Scheduled(len(one.fed), tuple(one.kept), names[:cut], names[cut:]),)

    def forget(self, names: Sequence[str]) -> None:
        self.forgotten += names


class FakeEngine:
    """`generation.Engine` and `WeightTarget` without a model."""

    block_size = BLOCK
    unreported = 1

    def __init__(self, max_model_len: int = 1000, stop_token: int = -1) -> None:
        self.max_model_len = max_model_len
        self.stop_token = stop_token
        self.label = "0"
        self.blocks: set[int] = set()
        self.cache_log = FakeCacheLog()
        self.named = self.cache_log.named
        self.requests: list[FakeRequest] = []
        self.heads: list[FakeRequest] = []
        self.ended: list[str] = []
        self.submit_delay = 0
        self.end_delay = 0
        """Turns of the event loop from a request's end to its session's hearing of it."""
        self.next_token: Callable[[list[int]], int] = lambda whole: 100 + len(whole) % 7
        self.on_step: Callable[[FakeRequest], None] = lambda request: None
        self.weights = 0
        self.calls: list[str] = []
        self.fail_load: Callable[[WeightManifest], Exception | None] = lambda manifest: None

    async def step(self, request: FakeRequest) -> None:
        self.on_step(request)
        await asyncio.sleep(0)

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
    ) -> FakeRequest:
        for _ in range(self.submit_delay):
            await asyncio.sleep(0)
        request = FakeRequest(self, list(map(int, token_ids)), max_tokens, cache, False)
        self.requests.append(request)
        return request

    async def prefill(self, token_ids: Sequence[int], cache: CacheUse) -> FakeRequest:
        request = FakeRequest(self, list(map(int, token_ids)), 1, cache, True)
        self.heads.append(request)
        return request

    def end_session(self, session: str) -> None:
        self.ended.append(session)

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def load_weights(self, manifest: WeightManifest) -> None:
        self.calls.append(f"load {manifest.version}")
        error = self.fail_load(manifest)
        if error is not None:
            self.weights = -1  # half loaded
            raise error
        self.weights = manifest.version

    async def set_weight_label(self, label: str) -> None:
        self.label = label

    async def prompt_logprobs(self, token_ids: Sequence[int], *, cache_salt: str) -> list[float]:
        return [-float(self.weights)] * (len(token_ids) - 1)
