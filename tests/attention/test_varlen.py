"""The GPU's kernel, played by plain torch: what it is given, under both of torch's signatures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks._edited_response import edited_response
from dynatok_online.attention import dense, varlen
from dynatok_online.attention.layout import Layout
from dynatok_online.rows.plan import plan_rows


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Sequence by sequence, causal masks aligned at the end; query heads share keys."""
    out = torch.empty_like(query)
    edges = zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    key_edges = zip(key_bounds.tolist(), key_bounds.tolist()[1:], strict=False)
    for (q0, q1), (k0, k1) in zip(edges, key_edges, strict=True):
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        one, seen, content = (
            x[None, a:b].transpose(1, 2)
            for x, a, b in ((query, q0, q1), (key, k0, k1), (value, k0, k1))
        )
        out[q0:q1] = F.scaled_dot_product_attention(
            one, seen, content, attn_mask=mask, scale=scale, enable_gqa=True
        )[0].transpose(0, 1)
    return out


def _torch_211(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    assert window_size == (-1, 0)
    assert scale is not None
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    return _plain(query, key, value, cu_seq_q, cu_seq_k, scale)


def _torch_213(*args: Any, enable_gqa: bool = False, **kwargs: Any) -> torch.Tensor:
    assert enable_gqa
    return _torch_211(*args, **kwargs)


@pytest.mark.parametrize("kernel", [_torch_211, _torch_213])
@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_the_same_as_dense(policy: str, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    varlen._kernel.cache_clear()
    (row,) = plan_rows([edited_response(policy, 20, 4, 24, 3, 100)])
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, row.tokens, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)
    )
    found = varlen.attend(query, key, value, 0.25, Layout(row), None)
    varlen._kernel.cache_clear()
    wanted = dense.attend(query.float(), key.float(), value.float(), 0.25, Layout(row), None)
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)
