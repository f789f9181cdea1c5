"""Concat attention on a GPU: per span the keys it sees, gathered once, one flash kernel.

`torch.nn.attention.varlen` aligns causal masks at the end of the keys, so a span's keys are what
it sees followed by itself. It takes bfloat16 and float16; other types go through `dense`.
Windows count keys from the end, which is the position only where a span's keys have consecutive
positions; rows where they do not go through `dense` as well.

The kernel itself shares keys between query heads. Since torch 2.12 `varlen_attn` wants to be told
so, and before that it has no word for it.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch

from dynatok_online.attention import dense
from dynatok_online.attention.layout import Layout


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    layout: Layout,
    window: int | None,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if not half or (window is not None and not _consecutive(layout)):
        return dense.attend(query, key, value, scale, layout, window)
    varlen_attn, shared = _kernel()
    index, bounds, key_bounds, longest, longest_keys = layout.once(
        ("varlen", query.device), lambda: _gathering(layout, query.device)
    )
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1).index_select(0, index),
        value[0].transpose(0, 1).index_select(0, index),
        bounds,
        key_bounds,
        longest,
        longest_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **({"enable_gqa": True} if shared and query.shape[1] != key.shape[1] else {}),
    )
    return out.transpose(0, 1).unsqueeze(0)


@cache
def _kernel() -> tuple[Any, bool]:
    """torch's function, and whether it must be told that query heads share keys."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _keys(layout: Layout) -> list[np.ndarray]:
    """Per span of the row the indices of its keys, by ascending position, itself last."""
    out = []
    for s in range(layout.first, len(layout.visible)):
        seen = np.flatnonzero(layout.visible[s, :s])
        seen = seen[np.argsort(layout.positions[layout.bounds[seen]], kind="stable")]
        out.append(
            np.concatenate([np.arange(layout.bounds[j], layout.bounds[j + 1]) for j in (*seen, s)])
        )
    return out


def _consecutive(layout: Layout) -> bool:
    return layout.once(
        "consecutive",
        lambda: all((np.diff(layout.positions[keys]) == 1).all() for keys in _keys(layout)),
    )


def _gathering(
    layout: Layout, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    keys = _keys(layout)
    bounds = layout.bounds[layout.first :] - layout.above
    lengths = np.array([len(one) for one in keys])
    key_bounds = np.concatenate([[0], np.cumsum(lengths)])
    return (
        torch.from_numpy(np.concatenate(keys)).to(device),
        torch.from_numpy(bounds.astype(np.int32)).to(device),
        torch.from_numpy(key_bounds.astype(np.int32)).to(device),
        int(np.diff(bounds).max()),
        int(lengths.max()),
    )
