"""What a model says of each token of a response: under its prompts, without them, with noise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch

from dynatok_online import attention
from dynatok_online.arrays import Floats
from dynatok_online.rows.plan import needed_tokens, plan_rows
from dynatok_online.training.head import ChunkedHead
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory


@dataclass(frozen=True)
class Scores:
    """[R] each, of the tokens of one response."""

    nll: Floats
    """-log p(y), in nats."""
    entropy: Floats
    """Of the distribution that it was drawn from, in nats."""


class Scorer:
    """A model, prepared for rows, that only reads."""

    def __init__(self, model: Any, max_row_tokens: int = 4096) -> None:
        self._model = model.eval()
        self._most = max_row_tokens
        attention.prepare(model)
        self._head = ChunkedHead(model)

    @torch.no_grad()
    def score(self, one: Trajectory) -> Scores:
        """Each token under the prompt of its own pass; NaN where nothing stands before it."""
        found = np.full((2, len(one.response)), np.nan)
        for row in plan_rows([one], max_tokens=max(self._most, needed_tokens(one))):
            given = attention.inputs(row, self._model.device)
            ids = attention.to_device(row.targets, self._model.device, torch.long)
            said = self._head.scores(partial(self._model, **given, use_cache=False), ids)
            found[:, row.response_index] = torch.stack(said).cpu().numpy()
        found[0] *= -1
        return Scores(found[0], found[1])

    @contextlib.contextmanager
    def shaken(self, alpha: float, tokens: int, seed: int) -> Iterator[None]:
        """While open, embeddings carry NEFTune's noise for a text of so many tokens."""
        table = self._model.get_input_embeddings()
        most = alpha / math.sqrt(tokens * table.weight.shape[1])
        generator = torch.Generator(table.weight.device).manual_seed(seed)

        def shake(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            noise = torch.rand(out.shape, generator=generator, device=out.device) * 2 - 1
            return out + (most * noise).to(out.dtype)

        hook = table.register_forward_hook(shake)
        try:
            yield
        finally:
            hook.remove()


def without_prompt(one: Trajectory) -> Trajectory:
    """The response alone. The first token of its prompt stands for the beginning of a text."""
    layout = one.passes[0].layout if one.passes else ()
    first = np.concatenate([np.zeros(0, np.int32), *(one.pieces[i] for i in layout if i >= 0)])[:1]
    return msgspec.structs.replace(
        one,
        pieces=(first if len(first) else np.zeros(1, np.int32),),
        passes=(
            Pass(
                layout=(0, RESPONSE),
                states={},
                start=0,
                stop=len(one.response),
                num_cached_tokens=0,
            ),
        ),
        edits=(),
    )
