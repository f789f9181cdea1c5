"""On CPU: few different numbers of rows, so that oneDNN needs few kernels, and keeps them.

vLLM's CPU build multiplies with oneDNN, which compiles a kernel for every number of rows that it
meets, in about 1 ms for each shape of weights. While nothing but decoding goes on, the rows are
the requests, and repeat. Each edit, though, feeds a number of tokens of its own: most of its time
would go into a kernel that is never used again. Long inputs are therefore filled up with rows of
zeros, whose results are dropped, and each layer remembers the kernels of all numbers of rows that
are left.
"""

from __future__ import annotations

import torch

STEP = 16
"""Long inputs have a multiple of so many rows."""
SHORT = 32
"""So few rows are left as they are."""
KERNELS = 256
"""A layer remembers the kernels of so many numbers of rows; vLLM says 32."""


def filled_rows(rows: int) -> int:
    """How many rows an input of `rows` is multiplied with."""
    return rows if rows <= SHORT else -(-rows // STEP) * STEP


def install() -> None:
    """Multiply so in this process."""
    from vllm import _custom_ops as ops

    create, multiply = ops.create_onednn_mm, ops.onednn_mm
    if not ops._supports_onednn or hasattr(multiply, "dynatok"):
        return

    def remembering(
        weight: torch.Tensor, primitive_cache_size: int = KERNELS
    ) -> ops.CPUDNNLGEMMHandler:
        return create(weight, max(primitive_cache_size, KERNELS))

    def filled(
        handler: ops.CPUDNNLGEMMHandler, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        rows = x.numel() // handler.k
        more = filled_rows(rows) - rows
        if not more:
            return multiply(handler, x, bias)
        longer = torch.nn.functional.pad(x.reshape(rows, handler.k), (0, 0, 0, more))
        return multiply(handler, longer, bias)[:rows].view(*x.shape[:-1], handler.n)

    filled.dynatok = True  # type: ignore[attr-defined]
    ops.create_onednn_mm, ops.onednn_mm = remembering, filled
