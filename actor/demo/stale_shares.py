"""How much of each edit old KV swallowed: computed in this process, when somebody asks for it.

The engine hands out no log-probabilities under a prompt that it did not serve, so the model is
loaded once more, in float32 on the processor: as much memory again as its weights take.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dynatok_online.adherence.stale import Swallowed, swallowed
from dynatok_online.trajectory import Trajectory


class StaleShares:
    """Loads `model` at the first question; one question at a time."""

    def __init__(self, model: str) -> None:
        self._name = model
        self._model: Any = None
        self._one = asyncio.Lock()

    async def of(self, trajectory: Trajectory) -> list[Swallowed]:
        """Of every stretch after an edit."""
        async with self._one:
            return await asyncio.to_thread(self._compute, trajectory)

    def _compute(self, trajectory: Trajectory) -> list[Swallowed]:
        if self._model is None:
            self._model = _load(self._name)
        return swallowed(self._model, trajectory)


def _load(name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from dynatok_online import attention

    logging.disable_progress_bar()
    found = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    attention.prepare(found)
    return found
