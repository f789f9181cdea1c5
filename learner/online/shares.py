"""The rows of one optimizer step, shared out to the ranks, and as bytes on their way there.

All trajectories of a step are planned at once: as many rows for every rank, balanced by cost. A
rank's rows are its micro steps; a row runs forward and backward alone, so how many of them make a
micro step changes nothing. Divisor of the loss is the step's own number of loss tokens, on every
rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from dynatok_online.rows.row import Row
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.trajectory import Trajectory

Batch = dict[str, Any]
"""What `TrajectoryCollator` makes: `rows`, and numbers about them."""


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A numpy array."""

    dtype: Literal["<i4", "<i8", "<f4", "<f8", "|b1"]
    shape: tuple[int, ...]
    data: bytes


class Micro(msgspec.Struct, frozen=True, array_like=True):
    """A micro step: its rows, by name of `Row`'s field (`field/key` for a mapping of arrays), and
    the numbers beside them."""

    rows: list[dict[str, Array]]
    numbers: dict[str, int | float]


class Share(msgspec.Struct, frozen=True, tag="share"):
    """What one rank does in one optimizer step."""

    micro: list[Micro]
    loss_tokens: int
    """Of the whole step, over all ranks."""


def share_out(
    trajectories: Sequence[Trajectory],
    collator: TrajectoryCollator,
    ranks: int,
    accumulated: int,
) -> tuple[list[list[Batch]], int]:
    """`batches[rank][micro step]` of one optimizer step, and its loss tokens."""
    per_rank = collator.plan(trajectories, ranks)
    total = sum(batch["loss_tokens"] for batch in per_rank)
    return [_micro_steps(batch, accumulated) for batch in per_rank], total


def _micro_steps(batch: Batch, count: int) -> list[Batch]:
    """The last one has rows, whatever their number: there gradients meet."""
    rows = batch["rows"]
    edges = [len(rows) * k // count for k in range(count + 1)]
    out = []
    for k, (start, stop) in enumerate(pairwise(edges)):
        mine = rows[start:stop]
        # What is about the whole batch is counted once.
        rest = {name: value if k == 0 else 0 for name, value in batch.items() if name != "rows"}
        rest |= {
            "loss_tokens": sum(len(row.targets) for row in mine),
            "tokens": sum(row.tokens for row in mine),
        }
        out.append({"rows": mine, **rest})
    return out


def pack(batches: Sequence[Batch], loss_tokens: int) -> Share:
    """The batches of one rank as a message."""
    micro = []
    for batch in batches:
        numbers = {name: value for name, value in batch.items() if name != "rows"}
        micro.append(Micro([_packed(row) for row in batch["rows"]], numbers))
    return Share(micro, loss_tokens)


def unpack(share: Share) -> list[Batch]:
    """And back."""
    return [{"rows": [_unpacked(row) for row in one.rows], **one.numbers} for one in share.micro]


def _packed(row: Row) -> dict[str, Array]:
    out = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Mapping):
            out |= {f"{field.name}/{key}": _packed_array(one) for key, one in value.items()}
        else:
            out[field.name] = _packed_array(value)
    return out


def _unpacked(row: Mapping[str, Array]) -> Row:
    fields: dict[str, Any] = {}
    for name, packed in row.items():
        field, nested, key = name.partition("/")
        array = np.frombuffer(packed.data, packed.dtype).reshape(packed.shape).copy()
        if nested:
            fields.setdefault(field, {})[key] = array
        else:
            fields[field] = array
    return Row(**fields)


def _packed_array(value: np.ndarray) -> Array:
    flat = np.ascontiguousarray(value)
    return Array(flat.dtype.str, value.shape, flat.tobytes())  # type: ignore[arg-type]
