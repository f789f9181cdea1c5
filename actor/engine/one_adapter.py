"""vLLM's LoRA serving where all requests share one adapter, which no head has.

vLLM makes heads and embeddings ready for adapters too; on a CPU, asking for log-probabilities of a
prompt then ends its engine. And it copies the adapter's matrices once for every token, to multiply
each token with its own copy. Here heads and embeddings are left alone, and all tokens are
multiplied with the one adapter at once.
"""

from __future__ import annotations

from typing import Any

import torch


def install() -> None:
    """Serve so in this process, where an engine has room for one adapter (`max_loras: 1`)."""
    from vllm.lora import model_manager
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    supported = model_manager.is_supported_lora_module
    if hasattr(supported, "dynatok"):
        return

    def between(name: str, module: torch.nn.Module, *more: Any, **options: Any) -> bool:
        if isinstance(module, VocabParallelEmbedding):  # heads are, too
            return False
        found: bool = supported(name, module, *more, **options)
        return found

    between.dynatok = True  # type: ignore[attr-defined]
    model_manager.is_supported_lora_module = between
    if current_platform.is_cpu():
        from vllm.lora.punica_wrapper import punica_cpu

        punica_cpu.sgmv_shrink = _shrink(punica_cpu.sgmv_shrink)
        punica_cpu.sgmv_expand_slice = _expand_slice(punica_cpu.sgmv_expand_slice)


def _shrink(standard: Any) -> Any:
    def shrink(x: Any, weights: Any, out: Any, *more: Any) -> None:
        """out = scaling * x @ A.T: [n, r] of [n, in] and [slots, 1, r, in]."""
        if len(weights) > 1:
            standard(x, weights, out, *more)
            return
        scaling = more[-1]
        a = weights.flatten(0, -3)[0]
        out[:, : len(a)] = scaling * (x.to(out.dtype) @ a.to(out.dtype).T)

    return shrink


def _expand_slice(standard: Any) -> Any:
    def expand(x: Any, weights: Any, out: Any, *more: Any) -> None:
        """out[:, at : at + size] += x @ B.T: [n, out] of [n, r] and [slots, 1, out, r]."""
        if len(weights) > 1:
            standard(x, weights, out, *more)
            return
        *_, at, size, add = more
        b = weights.flatten(0, -3)[0].to(out.dtype)
        found = x.to(out.dtype) @ b.T
        if add:
            out[:, at : at + size] += found
        else:
            out[:, at : at + size] = found

    return expand
