"""On CPU: few different numbers of rows, so that oneDNN compiles few kernels.

vLLM's CPU build multiplies with oneDNN, which compiles a kernel for every number of rows that it
meets, in about 1 ms for each shape of weights. While nothing but decoding goes on, the rows are
the requests, and repeat. Each edit, though, feeds a number of tokens of its own: most of its time
would go into a kernel that is never used again. Long inputs are therefore filled up with rows of
zeros, whose results are dropped.
"""

from __future__ import annotations

import torch

STEP = 16
"""Long inputs have a multiple of so many rows."""
SHORT = 64
"""So few rows are left as they are."""


def install() -> None:
    """Fill up what oneDNN multiplies in this process."""
    from vllm import _custom_ops as ops

    multiply = ops.onednn_mm
    if not ops._supports_onednn or hasattr(multiply, "dynatok"):
        return

    def filled(
        handler: ops.CPUDNNLGEMMHandler, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        rows = x.numel() // handler.k
        more = -rows % STEP
        if rows <= SHORT or not more:
            return multiply(handler, x, bias)
        filled_up = torch.nn.functional.pad(x.reshape(rows, handler.k), (0, 0, 0, more))
        return multiply(handler, filled_up, bias)[:rows].view(*x.shape[:-1], handler.n)

    filled.dynatok = True  # type: ignore[attr-defined]
    ops.onednn_mm = filled
