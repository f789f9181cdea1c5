"""The default attention: standard kernels on tiles of the row, joined exactly.

Invariant: for a query with partial results `o_p` over disjoint key sets and their
log-sum-exps `l_p`, the whole result is `sum_p exp(l_p - l) o_p` with `l = log sum_p exp(l_p)`.
Backward needs no joining: the kernel's backward, given the *whole* result and `l`, returns each
tile's own share of the gradients. Keys are shared between query heads, never repeated.
An attention sink is one more partial result: its score, and a value of nothing.

On CPU the kernel is the flash kernel behind `scaled_dot_product_attention`, called directly
because the public function returns no log-sum-exp. On a GPU see `varlen`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynatok_online.attention import varlen
from dynatok_online.attention.layout import Layout, Scoring
from dynatok_online.attention.tiles import Tile, cut_tiles

_forward: Callable[..., Any] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Callable[..., Any] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

SMALL = 128
"""Tiles with at most this many queries are run several at a time,"""

FEW = 3
"""unless there are so few of them that gathering costs more than calls do."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scoring: Scoring,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]; H is a multiple of G."""
    if query.device.type != "cpu":
        return varlen.attend(query, key, value, layout, scoring)
    window = scoring.window
    batches = layout.once(("batches", window), lambda: _batch(cut_tiles(layout, window), layout))
    return _Joined.apply(query, key, value, scoring.sinks, scoring.scale, batches)


@dataclass(frozen=True)
class _Batch:
    """Tiles of one shape, run in one call."""

    count: int
    queries: slice | torch.Tensor
    """Indices of queries: a slice for one tile, else [count * queries per tile]."""
    keys: slice | torch.Tensor
    causal: bool
    bias: torch.Tensor | None
    """[queries, keys] 0 or -inf (float32), where a window cuts through the tile."""
    valid: torch.Tensor | None
    """[count * queries per tile] bool: False where a shorter tile was filled up."""


def _batch(tiles: list[Tile], layout: Layout) -> list[_Batch]:
    """Triangles first: together they write every token once; the others are added to them."""
    groups: dict[tuple[int, int], list[list[Tile]]] = {}
    out: list[_Batch] = []
    for tile in sorted(tiles, key=lambda one: (not one.causal, one.q0)):
        queries = tile.q1 - tile.q0
        if tile.window is not None or queries > SMALL:
            out.append(_single(tile, layout))
            continue
        width = 0 if tile.causal else tile.k1 - tile.k0
        same = groups.setdefault((width, (queries - 1) // 16), [])
        # A query may stand in a batch once only: joining reads and writes its result.
        for group in same:
            if group[-1].q1 <= tile.q0:
                group.append(tile)
                break
        else:
            same.append([tile])
    for group in (group for same in groups.values() for group in same):
        if len(group) > FEW:
            out.append(_joint(group, layout))
        else:
            out += [_single(tile, layout) for tile in group]
    return sorted(out, key=lambda one: not one.causal)


def _single(tile: Tile, layout: Layout) -> _Batch:
    bias = None
    if tile.window is not None:
        positions = layout.positions
        ahead = positions[tile.q0 : tile.q1, None] - positions[None, tile.k0 : tile.k1]
        bias = torch.zeros(ahead.shape)
        bias.masked_fill_(torch.from_numpy(ahead >= tile.window), -torch.inf)
    queries = slice(tile.q0 - layout.above, tile.q1 - layout.above)
    keys = slice(tile.k0, tile.k1)
    return _Batch(1, queries, keys, tile.causal, bias, None)


def _joint(group: list[Tile], layout: Layout) -> _Batch:
    """Tiles of nearly one shape. Shorter ones repeat their last query, and, in triangles, their
    last key, which no earlier query sees; what repeats is dropped and receives no gradient."""
    longest = max(tile.q1 - tile.q0 for tile in group)
    step = np.arange(longest)
    starts = np.array([tile.q0 for tile in group])[:, None]
    stops = np.array([tile.q1 for tile in group])[:, None]
    queries = torch.from_numpy(np.minimum(starts + step, stops - 1).ravel())
    valid = None if (stops - starts == longest).all() else starts + step < stops
    causal = group[0].causal
    if causal:
        keys = queries
    else:
        width = np.arange(group[0].k1 - group[0].k0)
        keys = torch.from_numpy((np.array([p.k0 for p in group])[:, None] + width).ravel())
    mask = None if valid is None else torch.from_numpy(valid.ravel())
    return _Batch(len(group), queries - layout.above, keys, causal, None, mask)


class _Joined(torch.autograd.Function):
    """Kernels on batches of tiles; results joined by log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        scale: float,
        batches: list[_Batch],
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        inputs = query, key, value
        # Partial results rounded to bfloat16 before they are joined would double its error.
        exact = torch.float32 if query.dtype in (torch.bfloat16, torch.float16) else query.dtype
        asked = query.dtype
        query, key, value = query.to(exact), key.to(exact), value.to(exact)
        # Stored as [N, H, D], which is what the model reshapes it to.
        out = query.new_empty((1, tokens, heads, width), dtype=exact).transpose(1, 2)
        lse = query.new_empty((1, tokens, heads), dtype=exact).transpose(1, 2)
        for one in batches:
            part, part_lse = _forward(
                _take(query, one.queries, one.count),
                _take(key, one.keys, one.count),
                _take(value, one.keys, one.count),
                0.0,
                one.causal,
                attn_mask=_bias(one, query.dtype),
                scale=scale,
            )
            part, part_lse = _flat(part), _flat(part_lse.unsqueeze(-1)).squeeze(-1)
            at = one.queries
            if one.valid is not None:
                at, part, part_lse = at[one.valid], part[:, :, one.valid], part_lse[:, :, one.valid]  # type: ignore[index]
            if one.causal:
                out[:, :, at], lse[:, :, at] = part, part_lse
                continue
            before = lse[:, :, at]
            joined = torch.logaddexp(before, part_lse)
            kept = out[:, :, at] * (before - joined).exp().unsqueeze(-1)
            out[:, :, at] = kept + part * (part_lse - joined).exp().unsqueeze(-1)
            lse[:, :, at] = joined
        if sinks is not None:
            # One more term of the softmax, with a value of nothing.
            joined = torch.logaddexp(lse, sinks.to(exact).view(-1, 1))
            out *= (lse - joined).exp().unsqueeze(-1)
            lse = joined
        ctx.save_for_backward(*inputs, sinks, out, lse)
        ctx.scale, ctx.batches = scale, batches
        return out.to(asked)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, out, lse = ctx.saved_tensors
        asked = query.dtype
        query, key, value, grad = (one.to(out.dtype) for one in (query, key, value, grad))
        grads = [torch.zeros_like(one) for one in (query, key, value)]
        for one in ctx.batches:
            part_grad = _take(grad, one.queries, one.count)
            if one.valid is not None:
                shape = (one.count, 1, part_grad.shape[2], 1)
                part_grad = part_grad * one.valid.view(shape)
            found = _backward(
                part_grad,
                _take(query, one.queries, one.count),
                _take(key, one.keys, one.count),
                _take(value, one.keys, one.count),
                _take(out, one.queries, one.count),
                _take(lse.unsqueeze(-1), one.queries, one.count).squeeze(-1),
                0.0,
                one.causal,
                attn_mask=_bias(one, query.dtype),
                scale=ctx.scale,
            )
            for total, part, at in zip(
                grads, found, (one.queries, one.keys, one.keys), strict=True
            ):
                if isinstance(at, slice):
                    total[:, :, at] += _flat(part)
                else:
                    total.index_add_(2, at, _flat(part))
        sinks_grad = None
        if sinks is not None:
            share = (sinks.to(lse.dtype).view(-1, 1) - lse).exp()
            sinks_grad = -(share * (grad * out).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return *(one.to(asked) for one in grads), sinks_grad, None, None


def _bias(one: _Batch, dtype: torch.dtype) -> torch.Tensor | None:
    return None if one.bias is None else one.bias.to(dtype)


def _take(tensor: torch.Tensor, at: slice | torch.Tensor, count: int) -> torch.Tensor:
    """[1, H, N, D] -> [count, H, n, D]"""
    if isinstance(at, slice):
        return tensor[:, :, at]
    part = tensor.index_select(2, at)
    return part.view(1, part.shape[1], count, -1, part.shape[3]).squeeze(0).transpose(0, 1)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[count, H, n, D] -> [1, H, count * n, D]"""
    if len(tensor) == 1:
        return tensor
    return tensor.transpose(0, 1).reshape(1, tensor.shape[1], -1, tensor.shape[3])
