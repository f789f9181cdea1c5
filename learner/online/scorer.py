"""Log-probabilities by the model in training itself: its weights, device, dtype, kernel and ranks.

There is no second model: what is scored here is what is trained. Dropout is off meanwhile, no
gradient is kept, the weights do not move, and logits are there some at a time. Under ZeRO-3 a
forward is a meeting of all ranks: each must score equally many rows, at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online import attention
from dynatok_online.rows.needed import needed
from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.training.head import ChunkedHead
from dynatok_online.trajectory import Trajectory

Logprobs = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Scorer:
    """Asks the model that `model` returns."""

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        device: torch.device,
        max_row_tokens: int = 16384,
    ) -> None:
        """`model`: as the trainer calls it. `max_row_tokens`: most that it computes at once."""
        self._model = model
        self._device = device
        self._max_row_tokens = max_row_tokens
        self._head: ChunkedHead | None = None

    def plan(
        self, trajectories: Sequence[Trajectory], wanted: Sequence[Flags], also: Sequence[Flags]
    ) -> list[Row]:
        """Rows with the response tokens `wanted` ([R] per trajectory) as targets, and with those of
        `also` that need nothing more to be computed."""
        out = []
        for row in plan_rows(trajectories, max_tokens=self._max_row_tokens):
            these, those = (_of_targets(row, one) for one in (wanted, also))
            if these.any():
                out.append(needed(row, these, those))
        return out

    def row(self, row: Row) -> Logprobs:
        """[M] log-probability of every target of a row."""
        targets = attention.to_device(row.targets, self._device, torch.long)
        with self._asked() as model:
            if self._head is None:
                self._head = ChunkedHead(_base(model))
            given = attention.inputs(row, self._device)
            found = self._head.log_probs(lambda: model(**given, use_cache=False), targets)
        return np.asarray(found.cpu().numpy(), np.float32)

    def texts(self, texts: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """Per plain text: log p(token i | tokens before it) for i = 1 .. n-1. All in one row."""
        values = self.row(_row_of(texts))
        ends = np.cumsum([len(one) - 1 for one in texts])[:-1]
        return tuple(tuple(map(float, one)) for one in np.split(values, ends))

    @contextlib.contextmanager
    def _asked(self) -> Iterator[Any]:
        model = self._model()
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train(was_training)


def _base(model: Any) -> Any:
    """The causal language model itself, inside whatever wraps it."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _of_targets(row: Row, flags: Sequence[Flags]) -> Flags:
    """[M] of a row's targets, from [R] per trajectory."""
    out = np.zeros(len(row.targets), bool)
    for index in np.unique(row.trajectory):
        mine = row.trajectory == index
        out[mine] = flags[index][row.response_index[mine]]
    return out


def _row_of(texts: Sequence[Sequence[int]]) -> Row:
    """Texts beside each other, none of which sees another."""
    lengths = [len(one) - 1 for one in texts]
    ids = [np.asarray(one, np.int32) for one in texts]
    count = sum(lengths)
    return Row(
        input_ids=np.concatenate([one[:-1] for one in ids]),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        bounds=np.concatenate([[0], np.cumsum(lengths)]),
        visible=np.eye(len(texts), dtype=bool),
        loss_positions=np.arange(count),
        targets=np.concatenate([one[1:] for one in ids]),
        weights=np.ones(count, np.float32),
        logprobs=np.full(count, np.nan, np.float32),
        versions=np.full(count, -1),
        trajectory=np.repeat(np.arange(len(texts)), lengths),
        response_index=np.concatenate([np.arange(n) for n in lengths]),
    )
