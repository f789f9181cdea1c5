"""Another model's view of the same targets.

    start      a frozen copy of the model as the trainer got it: as much memory as its weights
    published  a copy of the weights that actors were given last (online; as they were trained, not
               as they were rounded on the way)
    adapter    the model in training, its adapters switched off: no copy
    PATH       any other model with the same vocabulary: a folder, or a hub id

It runs forward over a row before the row is trained on, and keeps hidden states of targets, [M, H];
logits are made from them a chunk at a time, as the model's own are (`head`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online import attention
from dynatok_online.arrays import Floats
from dynatok_online.rows.row import Row
from dynatok_online.training.head import ChunkedHead, chunk_size

AT = "reference_at"
"""Column: which of the kept hidden states belongs to a target."""


class Reference:
    """A `Provider` whose columns say where hidden states are kept."""

    def __init__(self, given: str, model: Any, kernel: str, publishes: bool = False) -> None:
        """`model`: the model in training, with its adapters, before anything wraps it.
        `publishes`: its weights go to actors, and `follow` is called then. Raises ValueError where
        `given` cannot be."""
        self._follows = given == "published"
        self._adapted = None
        if given == "adapter":
            if not hasattr(model, "disable_adapter"):
                raise ValueError(
                    "reference: adapter is the model with its adapters switched off, and it has "
                    "none; train with LoRA, or use reference: start"
                )
            self._adapted = model
            base = model.get_base_model()
        elif given == "published" and not publishes:
            raise ValueError(
                "reference: published is what actors were given last, and nothing is published "
                "here; write start, adapter or a path"
            )
        elif given in ("start", "published"):
            base = _copy(model)
        else:
            from transformers import AutoModelForCausalLM

            base = AutoModelForCausalLM.from_pretrained(given)
        self._model = base
        if self._adapted is None:
            base.requires_grad_(False).eval()
            plain = base.get_base_model() if hasattr(base, "get_base_model") else base
            attention.prepare(plain, kernel)
            self._head = ChunkedHead(plain)
        else:
            self._head = ChunkedHead(base)
        if not self._head.chunked:
            raise ValueError(
                f"reference: the head of {type(base).__name__} cannot be run by itself; use an "
                "objective that needs no reference"
            )
        ours, theirs = (one.get_output_embeddings().weight.shape[0] for one in (model, base))
        if ours != theirs:
            raise ValueError(
                f"reference: {given} has a vocabulary of {theirs} tokens, the model one of {ours}; "
                "use a reference with the same one"
            )
        self._vocabulary = ours
        self._kept: list[torch.Tensor] = []
        self._count = 0

    @torch.no_grad()
    def follow(self, model: Any) -> None:
        """The weights of `model` (as at the beginning) are being published."""
        if self._follows:
            theirs = dict(model.named_parameters())
            for name, own in self._model.named_parameters():
                own.copy_(theirs[name])

    def begin(self) -> None:
        """Forget what was kept: a new micro batch begins."""
        self._kept, self._count = [], 0

    def __call__(self, model: torch.nn.Module, row: Row) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Provider`."""
        device = next(model.parameters()).device
        if self._adapted is None and next(self._model.parameters()).device != device:
            self._model.to(device)
        given = attention.inputs(row, device)
        with self._switched_off():
            hidden = self._head.hidden(lambda: self._model(**given, use_cache=False))
        at = np.arange(self._count, self._count + len(hidden), dtype=np.float32)
        self._kept.append(hidden)
        self._count += len(hidden)
        return {AT: at}

    def logits(self, at: torch.Tensor) -> torch.Tensor:
        """[m, V] logits of targets, given their column."""
        if len(self._kept) > 1:
            self._kept = [torch.cat(self._kept)]
        with torch.no_grad(), self._switched_off():
            return self._head.logits(self._kept[0][at.long()])

    def logprobs(self, row: Row) -> Floats:
        """[M] log-probabilities of the targets of a row that has run."""
        at = torch.as_tensor(row.columns[AT].astype(np.int64))
        ids = torch.as_tensor(row.targets.astype(np.int64))
        found = [np.zeros(0)]
        for piece in at.split(chunk_size(self._vocabulary)):
            logits = self.logits(piece)
            own = ids[: len(piece)].to(logits.device)
            ids = ids[len(piece) :]
            nll = torch.nn.functional.cross_entropy(logits, own, reduction="none")
            found.append(-nll.double().cpu().numpy())
        return np.concatenate(found)

    @contextlib.contextmanager
    def _switched_off(self) -> Any:
        """Adapters off, dropout off."""
        if self._adapted is None:
            yield
            return
        training = self._adapted.training
        self._adapted.eval()
        try:
            with self._adapted.disable_adapter():
                yield
        finally:
            self._adapted.train(training)


def _copy(model: Any) -> Any:
    """A copy that runs itself: a forward that was put onto the model is bound to the model."""
    found = copy.deepcopy(model)
    for module in found.modules():
        vars(module).pop("forward", None)
    return found
