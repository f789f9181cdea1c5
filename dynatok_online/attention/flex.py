"""FlexAttention (GPU): the rule of `layout` as a mask function, its blocks in closed form.

Whether a block of the [N, N] mask is empty, whole or mixed follows from which spans it touches
and which see which, without evaluating the mask.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from dynatok_online.attention.layout import Layout

BLOCK = 128


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    layout: Layout,
    window: int | None,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, N, D] -> [1, H, N, D]."""
    if query.device.type == "cpu" and (query.requires_grad or key.requires_grad):
        raise ValueError("flex attention has no backward on CPU; use attention: concat there")
    block_mask = layout.once(
        ("flex", window, query.device), lambda: make_block_mask(layout, window, query.device)
    )
    out: torch.Tensor = _kernel(query.device.type)(
        query,
        key,
        value,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out


@cache
def _kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def make_block_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
    """The `BlockMask` of a row; only mixed blocks evaluate the mask function."""
    from torch.nn.attention.flex_attention import BlockMask

    tokens = layout.tokens
    span = np.repeat(np.arange(len(layout.bounds) - 1), np.diff(layout.bounds))
    block = np.arange(tokens) // BLOCK
    count = int(block[-1]) + 1
    touches = np.zeros((count, len(layout.visible)), np.float32)
    touches[block, span] = 1
    visible = np.tril(layout.visible).astype(np.float32)
    some = np.tril(touches @ visible @ touches.T > 0)
    whole = np.tril(touches @ (1 - visible) @ touches.T == 0, -1)
    if window is not None:
        starts = np.arange(0, tokens, BLOCK)
        low = np.minimum.reduceat(layout.positions, starts)
        high = np.maximum.reduceat(layout.positions, starts)
        some &= low[:, None] - high[None, :] < window
        whole &= high[:, None] - low[None, :] < window
    mixed = some & ~whole
    span_t = torch.from_numpy(span).to(device)
    visible_t = torch.from_numpy(layout.visible).to(device)
    positions = torch.from_numpy(layout.positions).to(device)

    def allowed(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        mask = (k <= q) & visible_t[span_t[q], span_t[k]]
        if window is not None:
            mask = mask & (positions[q] - positions[k] < window)
        return mask

    return BlockMask.from_kv_blocks(
        *_listed(mixed, device),
        *_listed(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=allowed,
        seq_lengths=(tokens, tokens),
    )


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, 1, rows] how many blocks per row, [1, 1, rows, columns] which, those first."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    counts = torch.from_numpy(blocks.sum(1).astype(np.int32)).to(device)
    return counts[None, None], torch.from_numpy(order.astype(np.int32)).to(device)[None, None]
