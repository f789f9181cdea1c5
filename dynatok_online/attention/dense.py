"""Attention with the whole [N, A + N] mask written out: slow, simple, the oracle of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dynatok_online.attention.layout import Layout


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    layout: Layout,
    window: int | None,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]; H is a multiple of G."""
    mask = layout.once(
        ("mask", window, query.device),
        lambda: torch.from_numpy(layout.mask(window)).to(query.device),
    )
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
