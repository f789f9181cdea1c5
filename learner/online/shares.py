"""The rows of one optimizer step, shared out to the ranks, and as bytes on their way there.

All trajectories of a step are planned at once: as many rows for every rank, balanced by cost. A
rank's rows are its micro steps; a row runs forward and backward alone, so how many of them make a
micro step changes nothing. Divisor of the loss is the step's own number of loss tokens, on every
rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
import numpy as np
import torch

from dynatok_online.rows.row import Row
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.training.groups import NoGroups, advantages, with_advantages
from dynatok_online.trajectory import Trajectory
from learner.log import say

T = TypeVar("T")
Batch = dict[str, Any]
"""What `TrajectoryCollator` makes: `rows`, and numbers about them."""


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A numpy array."""

    dtype: Literal["<i4", "<i8", "<f4", "<f8", "|b1"]
    shape: tuple[int, ...]
    data: bytes


class Micro(msgspec.Struct, frozen=True, array_like=True):
    """A micro step: the arrays of its rows, by the way to them (`targets`, `columns/entropy`), and
    the numbers beside them."""

    rows: list[dict[str, Array]]
    numbers: dict[str, int | float]


class Share(msgspec.Struct, frozen=True, tag="share"):
    """What one rank does in one optimizer step."""

    micro: list[Micro]
    loss_tokens: int
    """Of the whole step, over all ranks."""
    newest: int = -1
    """The weight version that was published last."""


def share_out(
    trajectories: Sequence[Trajectory],
    collator: TrajectoryCollator,
    ranks: int,
    accumulated: int,
    first: bool = False,
) -> tuple[list[list[Batch]], int]:
    """`batches[rank][micro step]` of one optimizer step, and its loss tokens. Raises ValueError
    where the objective compares responses to one task, no task has two, and this is the `first`
    step; later it is said, and the step counts nothing."""
    per_rank = collator.plan(trajectories, ranks)
    if "groups" in collator.objective.needs:
        _compare(per_rank, first)
    total = sum(batch["loss_tokens"] for batch in per_rank)
    return [_micro_steps(batch, accumulated) for batch in per_rank], total


def _compare(per_rank: Sequence[Batch], strict: bool) -> None:
    """The advantages of all passes of a step into the rows of all ranks."""
    first = per_rank[0]
    keys, scores = torch.tensor(first.pop("groups")), torch.tensor(first.pop("scores"))
    try:
        found = advantages(keys, scores, keys, scores)
    except NoGroups as error:
        if strict:
            raise
        say(f"a step has nothing to learn from: {error}")
        found = torch.zeros(len(keys))
    for batch in per_rank:
        batch["rows"] = [with_advantages(row, found) for row in batch["rows"]]


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


def pack(batches: Sequence[Batch], loss_tokens: int, newest: int) -> Share:
    """The batches of one rank as a message."""
    micro = []
    for batch in batches:
        numbers = {name: value for name, value in batch.items() if name != "rows"}
        micro.append(Micro([dict(_flat(row)) for row in batch["rows"]], numbers))
    return Share(micro, loss_tokens, newest)


def unpack(share: Share) -> list[Batch]:
    """And back."""
    return [{"rows": [_built(Row, row) for row in one.rows], **one.numbers} for one in share.micro]


def _flat(value: Any) -> Iterator[tuple[str, Array]]:
    """The arrays of a row, named by the way to them; what is None has none."""
    if isinstance(value, np.ndarray):
        flat = np.ascontiguousarray(value)
        yield "", Array(flat.dtype.str, value.shape, flat.tobytes())  # type: ignore[arg-type]
        return
    if dataclasses.is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    for name, inner in (value or {}).items():
        for way, array in _flat(inner):
            yield f"{name}/{way}" if way else name, array


def _built(kind: type[T], arrays: Mapping[str, Array]) -> T:
    """A dataclass of arrays, of mappings of them, and of further dataclasses."""
    inner: dict[str, dict[str, Array]] = {}
    fields: dict[str, Any] = {}
    for way, array in arrays.items():
        name, nested, rest = way.partition("/")
        if nested:
            inner.setdefault(name, {})[rest] = array
        else:
            fields[name] = _array(array)
    for name, below in inner.items():
        within = _dataclass_of(kind, name)
        fields[name] = (
            {key: _array(one) for key, one in below.items()}
            if within is None
            else _built(within, below)
        )
    return kind(**fields)


def _dataclass_of(kind: type, name: str) -> Any:
    """The dataclass that a field holds, if it holds one."""
    hint = get_type_hints(kind)[name]
    return next((one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)), None)


def _array(packed: Array) -> np.ndarray:
    return np.frombuffer(packed.data, packed.dtype).reshape(packed.shape).copy()
