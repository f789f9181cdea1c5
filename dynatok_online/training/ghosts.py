"""Runs the ghosts of a row: what its targets would be worth had the edit before them not come.

`context_logprobs` runs them by themselves, with the spans that they stand on: at most one more
forward. `Shared` runs them in the middle of the row's own forward, when the backbone is through and
the head is not: all KV is there, and only the tokens after edits are run once more. Both take no
gradient and leave none; the model runs as in evaluation, with the weights of now.

    shared = Shared(model, head, row)
    with shared:
        logits = model(**attention.inputs(row, device, shared.layout), use_cache=False).logits
    delta = logprobs_of_targets - shared.found     # [M], how much each token owes to the edit
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from dynatok_online import attention
from dynatok_online.attention.stored import StoredKV
from dynatok_online.rows.ghosts import alone
from dynatok_online.rows.row import GhostRow, Row
from dynatok_online.training.chunk import Chunk
from dynatok_online.training.head import ChunkedHead


def context_logprobs(model: Any, head: ChunkedHead, row: Row) -> torch.Tensor:
    """[M] log p(target | prompt before the last edit), at least float32; NaN before any edit.

    `model`: the causal language model itself, prepared for rows; `head`: its head.
    """
    ghosts = alone(row)
    if ghosts is None:
        return torch.full((len(row.targets),), torch.nan, device=model.device)
    given = attention.inputs(ghosts.row, model.device)
    take = _Take(ghosts, model.device)
    with evaluating(model):
        head.run(lambda: model(**given, use_cache=False), take)
    return take.spread(len(row.targets))


class Shared:
    """The ghosts of a row on the KV of its own forward, which runs inside this context.

    `layout` belongs to the row; `found` is there when the head is reached (see `context_logprobs`).
    """

    def __init__(self, model: Any, head: ChunkedHead, row: Row) -> None:
        self._model = model
        self._head = head
        self._row = row
        self._left = StoredKV()
        self._open = contextlib.ExitStack()
        self.layout = attention.Layout(row, (), self._left)
        self.found = torch.full((len(row.targets),), torch.nan, device=model.device)

    def __enter__(self) -> Shared:
        self._open.enter_context(self._head.before(self._run))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._left.forget()

    def _run(self) -> None:
        ghosts = self._row.ghosts
        if ghosts is not None:
            layout = attention.Layout(ghosts.row, (self._left,))
            given = attention.inputs(ghosts.row, self._model.device, layout)
            at = given.pop("logits_to_keep")
            take = _Take(ghosts, self._model.device)
            with evaluating(self._model):
                hidden = self._model.base_model(**given, use_cache=False)[0]
                self._head.of_hidden(hidden[:, at], take)
            self.found = take.spread(len(self._row.targets))
        self._left.forget()


class _Take:
    """As a loss of chunks: keeps the log-probabilities of its targets."""

    def __init__(self, ghosts: GhostRow, device: Any) -> None:
        self._ids = attention.to_device(ghosts.row.targets, device, torch.long)
        self._at = attention.to_device(ghosts.targets, device, torch.long)
        self._found: list[torch.Tensor] = []

    def __call__(self, logits: Chunk, piece: slice) -> torch.Tensor:
        found = logits.log_prob(self._ids[piece])
        self._found.append(found)
        return found

    def spread(self, count: int) -> torch.Tensor:
        """[count] with NaN where no ghost predicts."""
        found = torch.cat(self._found)
        out = found.new_full((count,), torch.nan)
        out[self._at] = found
        return out


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradient, and as in evaluation; the model is left as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
