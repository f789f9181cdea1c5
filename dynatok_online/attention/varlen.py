"""Concat attention on a GPU: per span the keys it sees, gathered once, one flash kernel.

The kernel aligns causal masks at the end of the keys, so a span's keys are what it sees followed
by itself. It takes bfloat16 and float16 and heads of up to 256; what it does not take goes through
`dense`. Its windows count keys from the end, which is the position only where a span's keys have
consecutive positions; rows where they do not go through `dense` as well.

A key that many spans see is gathered as often. Its gradients are added in float32, sorted by key
as those of an embedding are: scattering them in bfloat16 loses digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dynatok_online.attention import dense
from dynatok_online.attention.copies import to_device
from dynatok_online.attention.layout import Layout, Scoring

_forward: Callable[..., Any] = torch.ops.aten._flash_attention_forward
_backward: Callable[..., Any] = torch.ops.aten._flash_attention_backward

LARGEST_HEAD = 256


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scoring: Scoring,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]."""
    window, width = scoring.window, query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    fits = half and width <= LARGEST_HEAD and width % 8 == 0
    if not fits or (window is not None and not _consecutive(layout)):
        return dense.attend(query, key, value, layout, scoring)
    found = layout.once(
        ("gathering", window, query.device), lambda: _gathering(layout, window, query.device)
    )
    flat = query[0].transpose(0, 1), _gather(key, found.index), _gather(value, found.index)
    out: torch.Tensor = _Flash.apply(*flat, scoring.sinks, scoring.scale, found)
    return out.transpose(0, 1).unsqueeze(0)


@dataclass(frozen=True)
class _Gathering:
    """Which keys each span meets: L in all."""

    index: torch.Tensor
    """[L] indices of keys, span by span."""
    bounds: torch.Tensor
    """[S + 1] int32, where each span's queries begin."""
    key_bounds: torch.Tensor
    """[S + 1] int32, where its keys begin in `index`."""
    longest: int
    longest_keys: int
    reach: dict[str, int]
    """The kernel's words for a window."""


def _gathering(layout: Layout, window: int | None, device: torch.device) -> _Gathering:
    keys = _keys(layout)
    bounds = layout.bounds[layout.first :] - layout.above
    if window is not None:
        positions = layout.positions
        firsts = positions[layout.bounds[layout.first : -1]]
        keys = [
            one[positions[one] > first - window] for one, first in zip(keys, firsts, strict=True)
        ]
    lengths = np.array([len(one) for one in keys])
    return _Gathering(
        index=to_device(np.concatenate(keys), device),
        bounds=to_device(bounds.astype(np.int32), device),
        key_bounds=to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device),
        # With single queries the kernel folds heads, and then wants one span a token.
        longest=max(2, int(np.diff(bounds).max())),
        longest_keys=max(2, int(lengths.max())),
        reach={} if window is None else {"window_size_left": window - 1, "window_size_right": 0},
    )


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


def _gather(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[1, G, N, D] -> [L, G, D]"""
    rows = tensor[0].transpose(0, 1)
    return F.embedding(index, rows.flatten(1)).unflatten(1, rows.shape[1:])


class _Flash(torch.autograd.Function):
    """The flash kernel on sequences of their own lengths, and attention sinks.

    Given the log-sum-exp of keys and sink, the kernel's backward returns the gradients of both.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        scale: float,
        spans: _Gathering,
    ) -> torch.Tensor:
        """query [N, H, D], key and value [L, G, D] -> [N, H, D]"""
        out, lse, *state, _ = _forward(
            *(query, key, value, spans.bounds, spans.key_bounds),
            *(spans.longest, spans.longest_keys, 0.0, True, False),
            scale=scale,
            **spans.reach,
        )
        if sinks is not None:
            joined = torch.logaddexp(lse, sinks.to(lse.dtype).unsqueeze(-1))
            out = (out * (lse - joined).exp().t().unsqueeze(-1)).to(query.dtype)
            lse = joined
        ctx.save_for_backward(query, key, value, sinks, out, lse, *state)
        ctx.scale, ctx.spans = scale, spans
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, out, lse, *state = ctx.saved_tensors
        spans = ctx.spans
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        found = _backward(
            *(grad, query, key, value, out, lse, spans.bounds, spans.key_bounds),
            *(spans.longest, spans.longest_keys, 0.0, True, *state),
            scale=ctx.scale,
            **spans.reach,
        )
        sinks_grad = None
        if sinks is not None:
            share = (sinks.to(lse.dtype).unsqueeze(-1) - lse).exp()
            sinks_grad = -(share * (grad.float() * out).sum(-1).t()).sum(1).to(sinks.dtype)
        return *found, sinks_grad, None, None
