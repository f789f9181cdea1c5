"""A second copy of the model that holds weights as they were published.

The model in training has moved on when trajectories of an older version arrive; this one goes
back. It computes in float32 whatever the weights were published as, so a difference to the
actor's numbers is the actor's, or a real error. No gradients, no DeepSpeed, CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online import attention
from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.trajectory import Trajectory


class Shadow:
    """A model for looking back. `load` first, then ask."""

    def __init__(self, model: Any, max_row_tokens: int = 16384) -> None:
        """`model`: one of the same architecture, adapters or not; its weights are not looked at.
        `max_row_tokens`: most that it computes at once."""
        self._max_row_tokens = max_row_tokens
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        with torch.random.fork_rng(devices=[]):  # making it must not move the run's seed
            # A copy: choosing its attention must not choose that of the model in training. Made
            # by its class, not by `from_config`, which would take it apart under ZeRO-3.
            self._model = type(base)(copy.deepcopy(base.config)).float()
        self._model.eval().requires_grad_(False)
        attention.prepare(self._model, "concat")

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take these weights over. Raises ValueError where a parameter is missing."""
        own = dict(self._model.named_parameters())
        if missing := sorted(own.keys() - weights.keys()):
            raise ValueError(f"the published weights lack {missing[:3]} of {len(missing)}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])

    def row_logprobs(self, row: Row) -> npt.NDArray[np.float32]:
        """[M] log-probability of every target of a row."""
        with torch.no_grad():
            logits = self._model(
                **attention.inputs(row, torch.device("cpu")), use_cache=False
            ).logits[0]
            targets = torch.as_tensor(row.targets, dtype=torch.long)
            chosen = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        return np.asarray(chosen.numpy(), np.float32)

    def trajectory_logprobs(
        self, trajectories: Sequence[Trajectory]
    ) -> list[npt.NDArray[np.float32]]:
        """[R] per trajectory: log-probability of each response token, in the state it was
        sampled in."""
        out = [np.full(len(one.response), np.nan, np.float32) for one in trajectories]
        for row in plan_rows(trajectories, max_tokens=self._max_row_tokens):
            values = self.row_logprobs(row)
            for index in np.unique(row.trajectory):
                mine = row.trajectory == index
                out[index][row.response_index[mine]] = values[mine]
        return out

    def text_logprobs(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """log p(token i | tokens before it) for i = 1 .. n-1 of a plain text."""
        ids = np.asarray(token_ids, np.int32)
        n = len(ids)
        row = Row(
            input_ids=ids[:-1],
            position_ids=np.arange(n - 1, dtype=np.int32),
            bounds=np.array([0, n - 1]),
            visible=np.ones((1, 1), bool),
            loss_positions=np.arange(n - 1),
            targets=ids[1:],
            weights=np.ones(n - 1, np.float32),
            logprobs=np.full(n - 1, np.nan, np.float32),
            versions=np.full(n - 1, -1),
            trajectory=np.zeros(n - 1, np.int64),
            response_index=np.arange(n - 1),
        )
        return tuple(float(value) for value in self.row_logprobs(row))
