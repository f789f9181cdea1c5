"""Advantages over several responses to one task.

A *group* is the passes of one optimizer step, on all ranks, that answered the same prompt in the
same states: the prompt that the response began with, and what its slots say now. The advantage of
a pass is how far its score is above its group's mean, in the group's standard deviations; 0 where
all scores are equal, or the pass is alone. It is known before anything runs, so rows, parts,
accumulation and ranks cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xxhash

from dynatok_online.rows.row import Row
from dynatok_online.trajectory import Trajectory


class NoGroups(ValueError):
    """There is nothing to compare in a step."""


PASS = "pass"
"""Column: which pass of its micro batch sampled a target."""


def task_key(trajectory: Trajectory) -> bytes:
    """What responses to one task have in common: the prompt that they began with."""
    return trajectory.fed(0).tobytes() if trajectory.passes else b""


def group_keys(trajectories: Sequence[Trajectory]) -> tuple[list[int], list[float]]:
    """The group of each pass of `trajectories`, in order, and its lowest score (NaN: none)."""
    keys, scores = [], []
    for trajectory in trajectories:
        begins = task_key(trajectory)
        for one in trajectory.passes:
            said = repr(sorted(one.states.items())).encode()
            keys.append(xxhash.xxh3_64_intdigest(begins + b"\0" + said) >> 1)  # fits int64
            scores.append(min(one.scores.values()) if one.scores else float("nan"))
    return keys, scores


def pass_columns(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Per trajectory, [R] each: `pass`."""
    out, at = [], 0
    for trajectory in trajectories:
        column = np.zeros(len(trajectory.response), np.float32)
        for k, one in enumerate(trajectory.passes):
            column[one.start : one.stop] = at + k
        at += len(trajectory.passes)
        out.append({PASS: column})
    return out


def advantages(
    keys: torch.Tensor, scores: torch.Tensor, all_keys: torch.Tensor, all_scores: torch.Tensor
) -> torch.Tensor:
    """[P] advantages of passes, given those of all ranks. Raises `NoGroups` where no group of the
    step has two passes to compare."""
    known = all_scores.isfinite()
    groups, place = torch.unique(all_keys[known], return_inverse=True)
    counts = torch.bincount(place, minlength=len(groups)).double()
    if not len(groups) or counts.max() < 2:
        raise NoGroups(
            "no two responses of this step answer the same prompt in the same states, so there are "
            "no advantages over a group; let several responses to one task follow each other in "
            "the data (online: actor.responses_per_task), or use an objective that needs no groups"
        )
    values = all_scores[known].double()
    mean = torch.zeros_like(counts).index_add_(0, place, values) / counts
    spread = torch.zeros_like(counts).index_add_(0, place, (values - mean[place]) ** 2) / counts
    std = spread.sqrt()
    mine = torch.searchsorted(groups, keys).clamp(max=len(groups) - 1)
    away = (scores.double() - mean[mine]) / std[mine].clamp(min=1e-6)
    even = std[mine] < 1e-6
    return away.where(scores.isfinite() & ~even, 0.0).float()


def with_advantages(row: Row, found: torch.Tensor) -> Row:
    """`row` with the column `advantage`, given those of its micro batch's passes."""
    if PASS not in row.columns:  # a row without targets
        return row
    column = found.cpu().numpy()[row.columns[PASS].astype(np.int64)]
    return replace(row, columns={**row.columns, "advantage": column})
