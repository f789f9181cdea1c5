"""A fake engine: deterministic tokens, a prefix cache, and aborts at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from actor.config import SamplingConfig
from actor.generation import Generated, OnTokens
from protocol.messages import WeightManifest

BLOCK = 4


class FakeRequest:
    """Samples one token per turn of the event loop (or as `engine.gate` allows)."""

    def __init__(self, engine: FakeEngine, fed: list[int], max_tokens: int, salt: str) -> None:
        self.engine = engine
        self.fed = fed
        self.max_tokens = max_tokens
        self.salt = salt
        self.token_ids: list[int] = []
        self.cached = 0
        self.finish = ""
        self.task = asyncio.ensure_future(self._generate())

    async def _generate(self) -> None:
        await asyncio.sleep(0)
        blocks = (len(self.fed) - 1) // BLOCK
        keys = [(self.salt, tuple(self.fed[: (i + 1) * BLOCK])) for i in range(blocks)]
        hits = 0
        while hits < blocks and keys[hits] in self.engine.blocks:
            hits += 1
        self.cached = hits * BLOCK
        while len(self.token_ids) < self.max_tokens:
            await self.engine.step(self)
            whole = [*self.fed, *self.token_ids]
            for i in range(len(whole) // BLOCK):
                self.engine.blocks.add((self.salt, tuple(whole[: (i + 1) * BLOCK])))
            token = self.engine.next_token(whole)
            self.token_ids.append(token)
            if token == self.engine.stop_token:
                self.finish = "stop"
                return
        self.finish = "length"

    async def wait(self, on_tokens: OnTokens | None = None) -> Generated:
        seen = 0
        while not self.finish:
            await asyncio.sleep(0)
            if on_tokens is not None and len(self.token_ids) > seen:
                on_tokens(self.token_ids[seen:])
                seen = len(self.token_ids)
            if self.task.done() and not self.task.cancelled():
                self.task.result()
        n = len(self.token_ids)
        if on_tokens is not None and n > seen:
            on_tokens(self.token_ids[seen:])
        labels = ((self.engine.label, n),) if n else ()
        return Generated(
            list(self.token_ids), [-0.5] * n, self.cached if n else 0, self.finish, labels
        )

    async def abort(self) -> None:
        if not self.finish:
            self.finish = "abort"
            self.task.cancel()


class FakeEngine:
    """`generation.Engine` and `WeightTarget` without a model."""

    block_size = BLOCK

    def __init__(self, max_model_len: int = 1000, stop_token: int = -1) -> None:
        self.max_model_len = max_model_len
        self.stop_token = stop_token
        self.label = "0"
        self.blocks: set[tuple[str, tuple[int, ...]]] = set()
        self.requests: list[FakeRequest] = []
        self.submit_delay = 0
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
        cache_salt: str,
        stream: bool,
    ) -> FakeRequest:
        for _ in range(self.submit_delay):
            await asyncio.sleep(0)
        request = FakeRequest(self, list(token_ids), max_tokens, cache_salt)
        self.requests.append(request)
        return request

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
