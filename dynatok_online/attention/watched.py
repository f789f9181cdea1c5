"""Where the last layer's attention goes: asked for after a row's forward, at some of its queries.

    layout = Layout(row)
    layout.watched = Watched()
    model(**attention.inputs(row, device, layout), use_cache=False)
    shares = layout.watched.share(layout, queries, counted)

Kernels give results, never weights. What the last layer makes its scores of is kept instead, and
the softmax is computed again, for the queries that are asked for, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynatok_online.arrays import Flags, Floats, Ints

if TYPE_CHECKING:
    from dynatok_online.attention.layout import Layout, Scoring

MOST_SCORES = 2**24
"""Of one piece, over all heads: 64 MiB in float32."""


class Watched:
    """Queries and keys of the last layer that attended."""

    def __init__(self) -> None:
        self._kept: tuple[torch.Tensor, torch.Tensor, Scoring] | None = None

    def keep(self, query: torch.Tensor, key: torch.Tensor, scoring: Scoring) -> None:
        """A layer attends: query [1, H, N, D], key [1, G, A + N, D]."""
        self._kept = query.detach(), key.detach(), scoring

    def share(self, layout: Layout, queries: Ints, counted: Callable[[slice], Flags]) -> Floats:
        """[M] how much of the attention of `queries` (indices of the row's own tokens) is on keys
        that count: 0 to 1, the mean over heads.

        `counted`: for a piece of the M, [m, A + N] which keys count.
        """
        assert self._kept is not None, "no layer has attended"
        query, key, scoring = self._kept
        heads, keys = query.shape[1], key.shape[2]
        exact = torch.promote_types(query.dtype, torch.float32)
        # [G, H / G, N, D]: query heads that share keys lie side by side.
        grouped = query[0].unflatten(0, (key.shape[1], -1)).to(exact)
        out = np.zeros(len(queries))
        size = max(1, MOST_SCORES // (heads * max(1, keys)))
        for start in range(0, len(queries), size):
            piece = slice(start, min(len(queries), start + size))
            at = torch.as_tensor(queries[piece], device=query.device)
            scores = grouped[:, :, at] @ key[0].to(exact)[:, None].transpose(-1, -2)
            scores = scores.flatten(0, 1) * scoring.scale  # [H, m, keys]
            if scoring.softcap is not None:
                scores = scoring.softcap * (scores / scoring.softcap).tanh()
            seen = torch.as_tensor(layout.mask(scoring.window, queries[piece]), device=at.device)
            scores = scores.masked_fill(~seen, -torch.inf)
            whole = scores.logsumexp(-1)
            if scoring.sinks is not None:
                whole = torch.logaddexp(whole, scoring.sinks.to(exact)[:, None])
            weights = (scores - whole[..., None]).exp().mean(0)
            wanted = torch.as_tensor(counted(piece), device=at.device)
            out[piece] = weights.where(wanted, 0.0).sum(-1).cpu().numpy()
        return out
