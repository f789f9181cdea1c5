"""What brings the columns that an objective needs and a model computes.

A provider is asked once per row, before the row runs forward and backward, and gives columns of
all its M targets: log-probabilities of a reference, or of the same tokens under another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from dynatok_online.objectives.targets import Need
from dynatok_online.rows.row import Row


class Provider(Protocol):
    """See the module's docstring."""

    def __call__(self, model: torch.nn.Module, row: Row) -> Mapping[str, npt.NDArray[np.float32]]:
        """[M] each, by the name of the property of `Targets` that reads it. `model` is what the
        trainer calls (DeepSpeed's engine, DDP, or the model itself), and has no gradient here."""


def complete(model: torch.nn.Module, row: Row, providers: Mapping[Need, Provider]) -> Row:
    """`row` with the columns of all providers, each of which sees those of the ones before."""
    with torch.no_grad():
        for one in providers.values():
            row = replace(row, columns={**row.columns, **one(model, row)})
    return row
