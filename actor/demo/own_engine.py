"""Keeps an engine running: starts vLLM beside the page, and again when it has died.

The page is there at once and says what the engine does: `starting`, `ready`, `dead`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from actor.demo.config import MOST_LANES, DemoConfig
from actor.demo.stale_shares import StaleShares
from actor.engine.engine import VllmEngine
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.adherence.stale import Swallowed
from dynatok_online.trajectory import Trajectory

PROBE = 2.0
"""Seconds between two looks at an engine that nobody uses."""
PROBE_TIMEOUT = 10.0
"""Seconds after which a silent engine counts as dead."""


class OwnEngine:
    """Owns the engine; `run` it as a task."""

    def __init__(self, config: DemoConfig, model: str, run_id: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sends = False
        self.measures = True
        self.say: Callable[[str, str], None] = lambda state, line: None
        """Told the engine's state and a line about it."""
        self.busy: Callable[[], bool] = lambda: False
        """Whether a session runs: an engine that works need not be looked at."""
        self._config = config
        self._model = model
        self._run_id = run_id
        self._died = asyncio.Event()
        self._probing = asyncio.Lock()
        self.engine: VllmEngine | None = None
        self._servings: list[Serving] = []
        self._stale = StaleShares(model)

    async def run(self) -> None:
        """Start the engine, and again whenever it has died. Raises what the first start raises."""
        failures = 0
        while True:
            begun = time.monotonic()
            if not self._servings:
                self.say("starting", "the engine is starting")
            try:
                await self._start()
            except Exception as error:
                if not self._servings:
                    raise
                failures += 1
                wait = min(2.0**failures, 30.0)
                self.say("dead", f"the engine did not start ({error}); again in {wait:.0f} s")
                await asyncio.sleep(wait)
                continue
            failures = 0
            self.say("ready", f"engine ready after {time.monotonic() - begun:.1f} s")
            await self._watch()
            self.say("dead", "the engine has died; starting it again")
            await self._shutdown()

    async def lost(self, error: Exception) -> bool:
        """A pass failed with `error`: whether that is because the engine died."""
        if await self._alive():
            return False
        await self._dies()
        return True

    @property
    def pausable(self) -> VllmEngine | None:
        """The engine: nobody else uses it."""
        return self.engine

    @property
    def ready(self) -> bool:
        """Whether passes may start."""
        return bool(self._servings) and self._servings[0].is_open

    @property
    def version(self) -> int:
        """Weights that serve: there is one version, the model as it was loaded."""
        return 0

    def serving(self, lane: int) -> Serving:
        """Where the session of a lane runs. Its cache begins empty, and no other lane shares it."""
        serving = self._servings[lane]
        serving.open(0, serving.new_salt(0))
        return serving

    async def send(self, trajectory: Trajectory) -> None:
        """There is no learner."""
        raise NotImplementedError

    async def swallowed(self, trajectory: Trajectory) -> list[Swallowed]:
        """By the same model beside the engine, which keeps its logits to itself."""
        return await self._stale.of(trajectory)

    async def close(self) -> None:
        """Stop the engine."""
        await self._shutdown()

    async def _start(self) -> None:
        self._died.clear()
        self.engine = await asyncio.to_thread(
            VllmEngine.start,
            self._model,
            self._config.engine,
            reuse=self._config.lanes,
            drafts=self._config.drafts,
            environment=self._config.environment,
            run_id=self._run_id,
            seed=self._config.seed,
        )
        if not self._servings:
            names = [f"{self._run_id}-{lane}" for lane in range(MOST_LANES)]
            self._servings = [Serving(self.engine, name) for name in names]
        for serving in self._servings:
            serving.engine = self.engine
            serving.open(0, serving.new_salt(0))

    async def _watch(self) -> None:
        """Returns when the engine has died."""
        while not self._died.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._died.wait(), PROBE)
            if not self._died.is_set() and not self.busy() and not await self._alive():
                await self._dies()

    async def _dies(self) -> None:
        self._died.set()
        # Aborting what ran on a dead engine fails too; what counts is that nothing new begins.
        closing = [one.close() for one in self._servings if one.is_open]
        await asyncio.gather(*closing, return_exceptions=True)

    async def _alive(self) -> bool:
        """Whether the engine answers."""
        if self.engine is None or self._died.is_set():
            return False
        async with self._probing:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await self.engine.resume()
                    await self.engine.prompt_logprobs([0, 0], cache_salt="probe")
            except Exception:
                return False
        return True

    async def _shutdown(self) -> None:
        if self.engine is not None:
            engine, self.engine = self.engine, None
            await asyncio.to_thread(engine.shutdown)
