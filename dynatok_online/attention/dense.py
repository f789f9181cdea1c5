"""Attention with the whole [N, A + N] mask written out: slow, simple, the oracle of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dynatok_online.attention.layout import Layout, Scoring


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scoring: Scoring,
) -> torch.Tensor:
    """query [1, H, N, D], key and value [1, G, A + N, D] -> [1, H, N, D]; H is a multiple of G."""
    window = scoring.window
    mask = layout.once(
        ("mask", window, query.device),
        lambda: torch.from_numpy(layout.mask(window)).to(query.device),
    )
    if scoring.sinks is not None:
        # A sink is the score of one more key, which all see and whose value is nothing.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        sinks = scoring.sinks.to(query.dtype).view(-1, 1, 1).expand(-1, len(mask), 1)
        scores = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        scores = scores.masked_fill(~mask, -torch.inf).expand(len(sinks), -1, -1)
        mask = torch.cat([scores, sinks], 2).unsqueeze(0)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scoring.scale, enable_gqa=True
    )
