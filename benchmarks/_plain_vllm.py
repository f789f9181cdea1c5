"""vLLM as anybody would use it, in a process of its own: no plugin, no events, no sessions.

What `dynatok bench actor` holds static text against. Same engine arguments otherwise, same prompts,
sampling and log-probabilities; every run has a cache salt of its own here as well.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

OURS = {"weight_transfer_config", "scheduling_policy"}
"""Engine arguments that only make sense with our plugin."""


class PlainVllm:
    """The process; close it when done."""

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        """Starts the engine, which takes about 20 s."""
        # Spawned: nothing that is loaded here may be there.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self._runs = 0
        self._pool.submit(_start, model, dict(arguments)).result()

    def generate(self, prompts: Sequence[Sequence[int]], length: int) -> float:
        """Seconds in which it writes a response of `length` tokens to each prompt, all at once."""
        self._runs += 1
        texts = [list(one) for one in prompts]
        return self._pool.submit(_generate, texts, length, f"run {self._runs}").result()

    def close(self) -> None:
        """Stop the engine and the process."""
        try:
            self._pool.submit(_stop).result()
        finally:
            self._pool.shutdown()


_process: dict[str, Any] = {}
"""The engine and the event loop of the other process."""


def _end_with_parent() -> None:
    """Without our plugin nobody else ends the engine of a benchmark that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is for the other process"
    parent.join()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _start(model: str, arguments: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["VLLM_PLUGINS"] = ""
    from actor.engine.arguments import engine_arguments
    from actor.engine.environment import prepare_environment

    prepare_environment({}, eager=True)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    merged = engine_arguments(model, 0, arguments)
    merged = {name: value for name, value in merged.items() if name not in OURS}
    if current_platform.is_cpu():  # without our plugin the worker dies of a seeded prompt in parts
        merged["enable_chunked_prefill"] = False
    loop = _process["loop"] = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    _process["llm"] = AsyncLLM.from_engine_args(AsyncEngineArgs(**merged))


def _generate(prompts: list[list[int]], length: int, salt: str) -> float:
    loop: asyncio.AbstractEventLoop = _process["loop"]
    return loop.run_until_complete(_all(_process["llm"], prompts, length, salt))


async def _all(llm: AsyncLLM, prompts: list[list[int]], length: int, salt: str) -> float:
    from vllm.inputs import tokens_input

    from actor.config import SamplingConfig
    from actor.engine.requests import sampling_params

    async def one(number: int) -> int:
        params = sampling_params(SamplingConfig(ignore_eos=True), (), stream=False)
        params.max_tokens, params.seed = length, number
        prompt = tokens_input(prompts[number], cache_salt=salt)
        async for output in llm.generate(prompt, params, f"{salt}/{number}"):
            if output.finished:
                return len(output.outputs[0].token_ids)
        raise RuntimeError("a request ended without its last output")

    begun = time.perf_counter()
    done = await asyncio.gather(*map(one, range(len(prompts))))
    seconds = time.perf_counter() - begun
    if set(done) != {length}:
        raise RuntimeError(f"plain vLLM wrote {sorted(set(done))} tokens instead of {length}")
    return seconds


def _stop() -> None:
    _process["llm"].shutdown()
