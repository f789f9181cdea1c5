"""Factors that compare the tokens of a whole trajectory: the row runs once before it is trained on.

The run takes no gradient and leaves none; the model runs as in evaluation, with the weights of now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online import attention
from dynatok_online.arrays import Flags, Floats
from dynatok_online.objectives.objective import Objective
from dynatok_online.objectives.targets import Scored
from dynatok_online.rows.row import Row
from dynatok_online.training.ghosts import evaluating
from dynatok_online.training.head import ChunkedHead


class Scoring:
    """A `Provider` of the columns of `objective.whole()`."""

    def __init__(
        self,
        objective: Objective,
        base: Any,
        head: ChunkedHead,
        reference: Callable[[Row], Floats] | None,
    ) -> None:
        """`base`: the causal language model itself, prepared for rows; `head`: its head;
        `reference`: [M] log-probabilities of a row's targets, where something needs them."""
        self._factors = objective.whole()
        self._watches = "attention" in objective.needs
        self._base, self._head, self._reference = base, head, reference

    def __call__(self, model: torch.nn.Module, row: Row) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Provider`."""
        unknown = np.full(len(row.targets), np.nan)
        logp, mass = self._run(row)
        known = {
            "logp": logp,
            "recorded": row.logprobs.astype(np.float64),
            "reference": unknown if self._reference is None else self._reference(row),
            "prompt_mass": unknown if mass is None else mass,
        }
        out = {key: np.zeros(len(logp), np.float32) for key, _ in self._factors}
        for one in np.unique(row.trajectory):
            mine = np.flatnonzero((row.trajectory == one) & (row.weights > 0))
            mine = mine[np.argsort(row.response_index[mine])]
            scored = Scored(**{name: values[mine] for name, values in known.items()})
            for (key, _), factor in self._factors.items():
                out[key][mine] = factor.among(scored)
        return out

    def _run(self, row: Row) -> tuple[Floats, Floats | None]:
        """[M] log-probabilities of targets, and the share of attention on the prompt."""
        device = self._base.device
        layout = attention.Layout(row)
        layout.watched = attention.Watched() if self._watches else None
        ids = attention.to_device(row.targets, device, torch.long)
        given = attention.inputs(row, device, layout)
        with evaluating(self._base):
            logp = self._head.log_probs(lambda: self._base(**given, use_cache=False), ids)
            mass = None
            if layout.watched is not None and len(row.targets):
                mass = layout.watched.share(layout, row.loss_positions, _prompt(row))
        return logp.double().cpu().numpy(), mass


def _prompt(row: Row) -> Callable[[slice], Flags]:
    """For a piece of the targets, [m, N] which tokens are of the prompt of their pass."""
    first, stop, sampled = (
        row.columns[name][:, None] for name in ("response_from", "response_to", "sampled_from")
    )
    at = row.position_ids[None]

    def of(piece: slice) -> Flags:
        written = (at >= first[piece]) & (at < stop[piece])
        return np.asarray(~written & (at < sampled[piece]))

    return of
