"""vLLM's check of guesses on CPU, at the temperature that was asked for.

vLLM spreads the temperature of each request over its guesses with a kernel for integers: on a CPU
it converts, writes into the copy, and divides logits by memory that nobody has written.
"""

from __future__ import annotations

import torch


def install() -> None:
    """Check so in this process."""
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """[n] of [B]: each request's value, once for each of its tokens; `replace_from` becomes
    `replace_to`."""
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1).long())
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)
