"""Filled up with zeros, every product is the same, and few kernels are needed."""

from __future__ import annotations

import pytest
import torch

from actor.engine import cpu_rows
from actor.engine.cpu_rows import SHORT, filled_rows


def test_decoding_is_left_alone_and_long_inputs_have_few_lengths() -> None:
    assert [filled_rows(rows) for rows in (1, SHORT, 33, 48, 81)] == [1, SHORT, 48, 48, 96]
    assert len({filled_rows(rows) for rows in range(1, 2049)}) == SHORT + (2048 - SHORT) // 16


@pytest.mark.engine
@pytest.mark.parametrize("rows", [(1,), (32,), (33,), (2, 40), (200,)])
def test_products_are_those_of_torch(rows: tuple[int, ...]) -> None:
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("oneDNN multiplies on CPUs only")
    current_platform.import_kernels()
    cpu_rows.install()
    installed = ops.onednn_mm
    cpu_rows.install()
    assert ops.onednn_mm is installed
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 48, generator=generator), torch.randn(96, generator=generator)
    x = torch.randn(*rows, 48, generator=generator)
    handler = ops.create_onednn_mm(weight.t())
    for one in (None, bias):
        found = ops.onednn_mm(handler, x, one)
        wanted = torch.nn.functional.linear(
            x.double(), weight.double(), None if one is None else one.double()
        )
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-5
