"""Prompts that vLLM computes in parts, on CPU: what a part draws is drawn again.

The last position of each part is sampled, and the token thrown away; vLLM then sets the request's
random generator back by an offset. A CPU's generator has none, and the worker would die.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Set them back by their state, in this process."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sample, keep = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync
    if getattr(sample, "dynatok", False):
        return

    def sample_and_set_back(self: GPUModelRunner, *arguments: Any, **options: Any) -> Any:
        before = [(one, one.get_state()) for _, one in _of_parts(self)]
        try:
            return sample(self, *arguments, **options)
        finally:
            for generator, state in before:
                generator.set_state(state)

    def keep_without_setting_back(self: GPUModelRunner, *arguments: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        aside = dict(_of_parts(self))
        for index in aside:
            del generators[index]
        try:
            return keep(self, *arguments, **options)
        finally:
            generators.update(aside)

    sample_and_set_back.dynatok = True  # type: ignore[attr-defined]
    GPUModelRunner._sample = sample_and_set_back
    GPUModelRunner._bookkeeping_sync = keep_without_setting_back


def _of_parts(runner: Any) -> Iterator[tuple[int, torch.Generator]]:
    """Index in the batch, and generator, of each seeded request of which more prompt is to come."""
    generators = runner.input_batch.generators
    for index in np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]:
        if int(index) in generators:
            yield int(index), generators[int(index)]
