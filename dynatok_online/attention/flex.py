"""FlexAttention (GPU): the rule of `layout` as a mask function, its blocks in closed form.

Whether a block of the [N, A + N] mask is empty, whole or mixed follows from which spans it touches
and which see which, without evaluating the mask.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online.arrays import Ints
from dynatok_online.attention.layout import Layout, Scoring

BLOCK = 128


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scoring: Scoring,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]."""
    if query.device.type == "cpu" and (query.requires_grad or key.requires_grad):
        raise ValueError("flex attention has no backward on CPU; use attention: concat there")
    window, sinks = scoring.window, scoring.sinks
    block_mask = layout.once(
        ("flex", window, query.device), lambda: make_block_mask(layout, window, query.device)
    )
    out, lse = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if scoring.softcap is None else _cap(scoring.softcap),
        block_mask=block_mask,
        scale=scoring.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_lse=True,
    )
    if sinks is not None:
        out = out * torch.sigmoid(lse - sinks.to(lse.dtype).view(-1, 1)).unsqueeze(-1).to(out.dtype)
    return out


@cache
def _cap(softcap: float) -> Any:
    """One function for a cap, or every call would be compiled anew."""

    def bend(score: torch.Tensor, b: Any, h: Any, q: Any, k: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return bend


@cache
def _kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def make_block_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
    """The `BlockMask` of a row; only mixed blocks evaluate the mask function."""
    from torch.nn.attention.flex_attention import BlockMask

    span = np.repeat(np.arange(len(layout.bounds) - 1), np.diff(layout.bounds))
    keys = np.arange(len(layout.positions))
    queries = keys[layout.above :]
    touching, touched = (_touches(span[at], len(layout.visible)) for at in (queries, keys))
    seen = np.tril(layout.visible).astype(np.float32)
    (first, last), (first_key, last_key) = _extremes(queries), _extremes(keys)
    some = (touching @ seen @ touched.T > 0) & (last[:, None] >= first_key)
    whole = (touching @ (1 - seen) @ touched.T == 0) & (first[:, None] >= last_key)
    if window is not None:
        (low, high), (low_key, high_key) = (
            _extremes(layout.positions[at]) for at in (queries, keys)
        )
        some &= low[:, None] - high_key < window
        whole &= high[:, None] - low_key < window
    mixed = some & ~whole
    span_t = torch.from_numpy(span).to(device)
    visible_t = torch.from_numpy(layout.visible).to(device)
    positions = torch.from_numpy(layout.positions).to(device)

    def allowed(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q = q + layout.above
        mask = (k <= q) & visible_t[span_t[q], span_t[k]]
        if window is not None:
            mask = mask & (positions[q] - positions[k] < window)
        return mask

    return BlockMask.from_kv_blocks(
        *_listed(mixed, device),
        *_listed(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=allowed,
        seq_lengths=(len(queries), len(keys)),
    )


def _touches(span: Ints, spans: int) -> npt.NDArray[np.float32]:
    """[blocks, spans] 1 where a block of tokens holds some of a span."""
    out = np.zeros((-(-len(span) // BLOCK), spans), np.float32)
    out[np.arange(len(span)) // BLOCK, span] = 1
    return out


def _extremes(values: Ints) -> tuple[Ints, Ints]:
    """[blocks] the lowest and the highest of each block of tokens."""
    starts = np.arange(0, len(values), BLOCK)
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, 1, rows] how many blocks per row, [1, 1, rows, columns] which, those first."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    counts = torch.from_numpy(blocks.sum(1).astype(np.int32)).to(device)
    return counts[None, None], torch.from_numpy(order.astype(np.int32)).to(device)[None, None]
