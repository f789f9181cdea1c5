"""The GPU's path with its kernel played by plain torch: what it is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks._edited_response import edited_response
from dynatok_online.attention import dense, varlen
from dynatok_online.attention.layout import Layout, Scoring
from dynatok_online.rows.plan import plan_rows


def _sequences(bounds: torch.Tensor, key_bounds: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    edges, key_edges = bounds.tolist(), key_bounds.tolist()
    for s in range(len(edges) - 1):
        yield slice(edges[s], edges[s + 1]), slice(key_edges[s], key_edges[s + 1])


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, left: int | None) -> torch.Tensor:
    """[H, n, m], causal masks and windows aligned at the end; query heads share keys."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", query.double(), key.double()) * scale
    ahead = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    hidden = ahead < 0
    if left is not None:
        hidden |= ahead > left
    return scores.masked_fill(hidden, -torch.inf)


def _forward(*given: Any, scale: float, **window: int) -> tuple[Any, ...]:
    query, key, value, bounds, key_bounds, longest, longest_keys, dropout, causal, debug = given
    assert (dropout, causal, debug) == (0.0, True, False)
    assert longest >= max(2, int(bounds.diff().max()))
    assert longest_keys >= int(key_bounds.diff().max())
    assert (bounds[-1], key_bounds[-1]) == (len(query), len(key))
    assert bounds.dtype == key_bounds.dtype == torch.int32
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[1], len(query))
    for q, k in _sequences(bounds, key_bounds):
        scores = _scores(query[q], key[k], scale, window.get("window_size_left"))
        lse[:, q] = scores.logsumexp(-1).float()
        shared = value[k].double().repeat_interleave(query.shape[1] // value.shape[1], 1)
        out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), shared).to(out.dtype)
    return out, lse, torch.zeros(2), torch.zeros(0), torch.zeros(0)


def _backward(*given: Any, scale: float, **window: int) -> tuple[torch.Tensor, ...]:
    """From the result and the log-sum-exp that it is given, as the kernel does."""
    grad, query, key, value, out, lse, bounds, key_bounds, *_ = given
    grads = [torch.zeros(one.shape, dtype=torch.float64) for one in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    for q, k in _sequences(bounds, key_bounds):
        scores = _scores(query[q], key[k], scale, window.get("window_size_left"))
        share = (scores - lse[:, q, None]).exp()
        wide_key, wide_value = (
            one[k].double().repeat_interleave(groups, 1) for one in (key, value)
        )
        inner = (grad[q].double() * out[q]).sum(-1).t().unsqueeze(-1)
        of_scores = share * (torch.einsum("qhd,khd->hqk", grad[q].double(), wide_value) - inner)
        grads[0][q] = torch.einsum("hqk,khd->qhd", of_scores, wide_key) * scale
        wide = torch.einsum("hqk,qhd->khd", of_scores, query[q].double()) * scale
        grads[1][k] = wide.unflatten(1, (-1, groups)).sum(2)
        wide = torch.einsum("hqk,qhd->khd", share, grad[q].double())
        grads[2][k] = wide.unflatten(1, (-1, groups)).sum(2)
    return tuple(one.to(query.dtype) for one in grads)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_results_and_gradients_are_those_of_dense(
    policy: str, window: int | None, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "_forward", _forward)
    monkeypatch.setattr(varlen, "_backward", _backward)
    (row,) = plan_rows([edited_response(policy, 20, 4, 24, 3, 100)])
    layout = Layout(row)
    assert varlen._consecutive(layout)
    torch.manual_seed(0)
    given = [torch.randn(1, heads, row.tokens, 16) for heads in (4, 2, 2)]
    given += [torch.randn(4)] if sinks else []
    grad = torch.randn(1, 4, row.tokens, 16)

    def run(attend: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        # The values are the same: bfloat16 numbers.
        inputs = [one.bfloat16().to(dtype).requires_grad_() for one in given]
        scoring = Scoring(0.25, window, inputs[3] if sinks else None)
        out = attend(*inputs[:3], layout, scoring)
        return (out.detach(), *torch.autograd.grad(out, inputs, grad.bfloat16().to(dtype)))

    found, wanted = run(varlen.attend, torch.bfloat16), run(dense.attend, torch.float64)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 6e-3


def test_what_the_kernel_does_not_take_goes_through_dense() -> None:
    (row,) = plan_rows([edited_response("exact", 20, 4, 24, 3, 100)])
    layout, scoring = Layout(row), Scoring(0.25)
    for dtype, width in ((torch.float32, 16), (torch.bfloat16, 12), (torch.bfloat16, 264)):
        query, key, value = (
            torch.randn(1, heads, row.tokens, width, dtype=dtype) for heads in (4, 2, 2)
        )
        found = varlen.attend(query, key, value, layout, scoring)
        assert torch.equal(found, dense.attend(query, key, value, layout, scoring))
