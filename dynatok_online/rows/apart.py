"""Response tokens that are told apart by trajectory, for what changes them one by one.

While a batch is planned, each response token goes under an id of its own, below 0: copies of it
still merge, those of another trajectory never do. Then the rows get the true ids back, and beside
them which token each one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import xxhash

from dynatok_online.arrays import Hashes, mixed
from dynatok_online.rows.row import Row
from dynatok_online.trajectory import Trajectory


def set_apart(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The same trajectories with response tokens -1, -2, -3, ... over all of them."""
    out, at = [], 0
    for one in trajectories:
        stop = at + len(one.response)
        response = -1 - np.arange(at, stop, dtype=np.int32)
        out.append(msgspec.structs.replace(one, response=response))
        at = stop
    return out


class Named:
    """The true ids and the numbers of the response tokens of some trajectories."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        none = np.zeros(0, np.int32)
        self._ids = np.concatenate([none, *(one.response for one in trajectories)])
        numbers = [_numbers(one) for one in trajectories]
        self._numbers = np.concatenate([np.zeros(0, np.int64), *numbers])

    def row(self, row: Row) -> Row:
        """`row`, which was planned from `set_apart`, and its ghosts."""
        at = -1 - row.input_ids.astype(np.int64)
        ours = at >= 0
        ids, written = row.input_ids.copy(), np.full(len(at), -1, np.int64)
        ids[ours] = self._ids[at[ours]]
        written[ours] = self._numbers[at[ours]]
        ghosts = row.ghosts
        if ghosts is not None:
            ghosts = replace(ghosts, row=self.row(ghosts.row))
        return replace(row, input_ids=ids, written=written, ghosts=ghosts)


def _numbers(trajectory: Trajectory) -> np.ndarray:
    """[R] at least 0, and by name and index alone."""
    name = np.uint64(xxhash.xxh3_64_intdigest(trajectory.trajectory_id.encode()))
    index = np.arange(len(trajectory.response), dtype=np.uint64)
    return (mixed(mixed(index) ^ name) >> np.uint64(1)).astype(np.int64)


def draws(written: np.ndarray, seed: int) -> np.ndarray:
    """[N] uniform from 0 to 1, by number and seed alone; 2 where there is no number."""
    start: Hashes = mixed(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    drawn = mixed(written.astype(np.uint64) ^ start) >> np.uint64(11)
    return np.where(written >= 0, drawn * 2.0**-53, 2.0)
