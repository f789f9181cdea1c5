"""vLLM behind `actor.sessions.generation`: the only file that drives vLLM's front end.

`arguments` says how it is started, `requests` what is asked of it, `kv_events` reads what it did
to its cache.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from actor.config import DraftsConfig, SamplingConfig
from actor.engine.adapter_file import write_adapter
from actor.engine.arguments import (
    check_reuse,
    engine_arguments,
    stop_token_ids,
    why_not_sticky,
    why_not_turned,
)
from actor.engine.environment import check_plugin, prepare_environment, socket_parent
from actor.engine.kv_events import KvEvents
from actor.engine.names import STICKY, URGENT
from actor.engine.requests import (
    VllmRequest,
    prefill_params,
    prompt_logprobs,
    sampling_params,
    scoring_params,
)
from actor.sessions.generation import CacheUse
from protocol.weights.base import WeightsError
from protocol.wire.messages import PlacedWeights

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmEngine:
    """vLLM's `AsyncLLM`. Make it with `VllmEngine.start`; `shutdown` it in a `finally`."""

    def __init__(self, llm: AsyncLLM, run_id: str, sockets: Path) -> None:
        self._llm = llm
        self._run_id = run_id
        self._sockets = sockets
        self.cache_log = KvEvents(*_endpoints(sockets))
        """What became of each request's blocks, from vLLM's cache events."""
        self._transfer_ready = False
        self._adapter: LoRARequest | None = None
        """What every request computes with, besides the model's own weights."""
        self._adapters = 0
        self._scored = 0
        config = llm.vllm_config
        # Asked again for every request: sessions may come with policies that nobody named before.
        self._not_sticky = why_not_sticky(config)
        self._not_turned = why_not_turned(config)
        self.block_size = int(config.cache_config.block_size)
        self.max_model_len = int(config.model_config.max_model_len)
        self.stop_token_ids = stop_token_ids(config.model_config)
        self._ended: dict[str, None] = {}
        """Sticky sessions that have ended, and that the engine process may still remember."""
        # One that runs ahead does not report what the very last position filled; one that is given
        # drafts, whose steps end where they begin, not what they filled in the last step.
        self.unreported = max(1, config.num_speculative_tokens)
        self._by_priority = config.scheduler_config.policy == "priority"

    @classmethod
    def start(
        cls,
        model: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        reuse: Iterable[str] = (),
        drafts: DraftsConfig = DraftsConfig(),  # noqa: B008 (frozen)
        environment: Mapping[str, str] | None = None,
        run_id: str = "run",
        seed: int = 0,
    ) -> VllmEngine:
        """Start vLLM (about 20 s). `arguments` are its engine arguments.

        Raises ValueError, before anything is loaded, for an argument that vLLM does not know or
        that we cannot work with, and for a policy in `reuse` that it cannot follow with these.
        """
        check_plugin()
        given = dict(arguments or {})
        prepare_environment(environment or {}, eager=bool(given.get("enforce_eager", True)))
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        merged = engine_arguments(model, seed, given, drafts)
        sockets = Path(tempfile.mkdtemp(prefix="dynatok-kv-", dir=socket_parent()))
        endpoint, replay_endpoint = _endpoints(sockets)
        merged["kv_events_config"] = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoint,
            "replay_endpoint": replay_endpoint,
            "buffer_steps": 1000,  # for repeating; every batch lists the tokens of its blocks
        }
        try:
            config = AsyncEngineArgs(**merged).create_engine_config(UsageContext.ENGINE_CONTEXT)
            check_reuse(config, reuse)
            llm = AsyncLLM.from_vllm_config(
                config,
                enable_log_requests=bool(merged.get("enable_log_requests")),
                disable_log_stats=bool(merged["disable_log_stats"]),
            )
            return cls(llm, run_id, sockets)
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
        params = sampling_params(sampling, self.stop_token_ids, stream=stream)
        params.max_tokens = max_tokens
        params.seed = seed
        return await self._add(request_id, token_ids, params, cache, head=False)

    async def prefill(self, token_ids: Sequence[int], cache: CacheUse) -> VllmRequest:
        """Fill the cache; see `generation.Engine`."""
        return await self._add(cache.name, token_ids, prefill_params(), cache, head=True)

    def end_session(self, session: str) -> None:
        """See `generation.Engine`. The engine process hears of it with later sticky requests."""
        self._ended[session] = None

    def _heard(self, sessions: Sequence[str]) -> None:
        """A request that told the engine process of these ended sessions was scheduled."""
        for session in sessions:
            self._ended.pop(session, None)

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
        if cache.moves is not None and self._not_turned:
            raise ValueError(f"reuse is 'turned', but {self._not_turned}; write sticky")
        use: dict[str, Any] = {"name": cache.name}
        ended: tuple[str, ...] = ()
        if cache.session:
            # Told until it is surely heard: a request may be aborted before it is scheduled.
            ended = tuple(self._ended)
            use |= {"session": cache.session, "previous": cache.previous, "held": cache.held}
            use |= {"head": head, "ended": ended, "anew": cache.anew, "moves": cache.moves}
        if cache.name:
            self.cache_log.expect(cache.name)
        params.skip_reading_prefix_cache = not cache.read
        params.extra_args = {STICKY: use, "kv_cache_report_mode": "full"} if cache.name else None
        # A rendered input: vLLM registers it before it yields to other tasks, so an abort that
        # comes any time after this call finds the request.
        queue = await self._llm.add_request(
            request_id,
            tokens_input(list(token_ids), cache_salt=cache.salt),
            params,
            lora_request=self._adapter,
            session_id=cache.name or None,
            priority=URGENT if cache.urgent and self._by_priority else 0,
        )
        return VllmRequest(self._llm, queue, partial(self._heard, ended))

    async def pause(self) -> None:
        """Stop scheduling; requests in flight keep their place."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        """Schedule again."""
        await self._llm.resume_generation()

    async def load_weights(self, manifest: PlacedWeights) -> None:
        """Load a complete set of weights, or adapters; see `generation.WeightTarget`."""
        if manifest.adapter_rank is not msgspec.UNSET:
            await self._load_adapter(manifest, manifest.adapter_rank)
            return
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        if not self._transfer_ready:
            # Nothing to set up: every update names the file, on this machine, that we verified.
            await self._llm.init_weight_transfer_engine(
                WeightTransferInitRequest(init_info={"run_id": self._run_id})
            )
            self._transfer_ready = True
        info = {"manifest": msgspec.to_builtins(manifest)}
        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))
        await self._llm.finish_weight_update()
        self._adapter = None

    async def _load_adapter(self, manifest: PlacedWeights, rank: int) -> None:
        """A new adapter for every load: what vLLM calls it is part of its names of blocks."""
        from vllm.lora.request import LoRARequest

        most = self._llm.vllm_config.lora_config
        if most is None or most.max_lora_rank < rank:
            has = "off" if most is None else f"on for rank {most.max_lora_rank}"
            raise WeightsError(
                f"weights {manifest.version} are adapters of rank {rank}, and "
                f"actor.engine.enable_lora is {has}; `dynatok launch` sets it for such a learner"
            )
        self._adapters += 1
        folder = self._sockets / f"adapter-{self._adapters}"
        try:
            await asyncio.to_thread(write_adapter, folder, manifest)
            name = f"{manifest.version}.{self._adapters}"
            adapter = LoRARequest(name, self._adapters, str(folder))
            if not await self._llm.add_lora(adapter):
                raise WeightsError(f"vLLM did not take the adapters of weights {manifest.version}")
            before, self._adapter = self._adapter, adapter
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if before is not None:
            await self._llm.remove_lora(before.lora_int_id)
            shutil.rmtree(before.lora_path, ignore_errors=True)

    async def set_weight_label(self, label: str) -> None:
        """Label the tokens sampled from now on."""
        await self._llm.update_weight_version(label)

    async def prompt_logprobs(self, token_ids: Sequence[int], *, cache_salt: str) -> list[float]:
        """log p(token i | tokens before it) for i = 1 .. n-1, from an ordinary request."""
        from vllm.inputs import tokens_input

        self._scored += 1
        queue = await self._llm.add_request(
            f"score-{self._scored}",
            tokens_input(list(token_ids), cache_salt=cache_salt),
            scoring_params(),
            lora_request=self._adapter,
        )
        try:
            output = await queue.get()
        except BaseException:
            await self._llm.abort(queue.request_id, internal=True)
            raise
        return prompt_logprobs(output)

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
