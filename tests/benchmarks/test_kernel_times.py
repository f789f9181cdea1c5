"""Which group a kernel is counted in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks._kernel_times import OPTIMIZER, group, kernel_times


@pytest.mark.parametrize(
    ("names", "shapes", "wanted"),
    [
        (["aten::mm"], [[8, 4], [4, 16]], "linear"),
        (["aten::mm", "MmBackward0"], [[8, 4], [4, 99]], "logits and loss"),
        (["aten::_log_softmax"], [[8, 99], [], []], "logits and loss"),
        (["aten::_flash_attention_forward", "torch_attn::_varlen_attn"], [[8, 2, 4]], "attention"),
        (["aten::zeros", "torch_attn::_varlen_attn"], [], "attention"),
        (["aten::mul"], [[8, 4], [4]], "else"),
        (["aten::_fused_adamw_", "Optimizer.step#AdamW.step"], [], "optimizer"),
        (["aten::copy_", "aten::mm", OPTIMIZER], [[99]], "optimizer"),
    ],
)
def test_groups(names: list[str], shapes: list[Any], wanted: str) -> None:
    assert group(names, shapes, vocabulary=99) == wanted


def test_every_kernel_counts_once_with_its_operator() -> None:
    def event(name: str, parent: Any, *microseconds: float) -> Any:
        kernels = [SimpleNamespace(duration=one) for one in microseconds]
        return SimpleNamespace(name=name, cpu_parent=parent, kernels=kernels, input_shapes=[])

    outer = event("aten::linear", None)
    events = [outer, event("aten::mm", outer, 1000.0, 500.0), event("aten::add", None, 250.0)]
    found = kernel_times(SimpleNamespace(events=lambda: events), vocabulary=99)
    assert found["linear"] == 1.5
    assert found["else"] == 0.25
    assert sum(found.values()) == 1.75
