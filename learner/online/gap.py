"""`logprob_gap`: the actor's log-probabilities against the learner's, at equal weights.

When the first trajectories with tokens of version v come, their spans run forward under the
weights that were published as v, and only the tokens that v sampled are compared. The gap of a
version is the mean absolute difference over them. It is near zero (float32: below 1e-4) exactly
when the learner rebuilds the context that the actor sampled from: the right weights, the right
splits, the right positions. Anything else shows here first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dynatok_online.trajectory import Trajectory
from learner.online.shadow import Shadow


class Gap(NamedTuple):
    """One comparison."""

    version: int
    mean: float
    """Mean absolute difference over the compared tokens, in nats."""
    largest: float
    tokens: int


class GapProbe:
    """Compares the first trajectories of every version; `keep` versions wait at most."""

    def __init__(self, shadow: Shadow, trajectories: int, keep: int) -> None:
        self._shadow = shadow
        self._count = trajectories
        self._keep = keep
        self._waiting: dict[int, Mapping[str, torch.Tensor]] = {}
        self.worst: Gap | None = None
        """The largest gap so far."""
        self.compared = 0
        """Versions compared."""
        self.seconds = 0.0
        """Time spent comparing."""
        self.missed = 0
        """Versions that no trajectory came for while their weights were kept."""

    def published(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        """These weights are `version`. They are kept until they were compared."""
        if self._count == 0:
            return
        self._waiting[version] = weights
        while len(self._waiting) > self._keep:
            del self._waiting[min(self._waiting)]
            self.missed += 1

    def observe(self, batch: Sequence[Trajectory]) -> list[Gap]:
        """Compare what `batch` brings of versions that wait."""
        began = time.perf_counter()
        out = []
        # -1: sampled from KV of two versions (`Trajectory.rebuildable`), which nothing equals.
        sampled = [np.where(one.rebuildable(), one.versions(), -1) for one in batch]
        for version in sorted(self._waiting):
            counts = [int((versions == version).sum()) for versions in sampled]
            most = np.argsort(counts, kind="stable")[::-1][: self._count]
            chosen = [int(i) for i in most if counts[i]]
            if chosen:
                out.append(self._compare(version, [batch[i] for i in chosen]))
        self.seconds += time.perf_counter() - began
        return out

    def _compare(self, version: int, trajectories: Sequence[Trajectory]) -> Gap:
        self._shadow.load(self._waiting.pop(version))
        differences = []
        logprobs = self._shadow.trajectory_logprobs(trajectories)
        for one, values in zip(trajectories, logprobs, strict=True):
            mine = (one.versions() == version) & one.rebuildable()
            differences.append(np.abs(values[mine] - one.logprobs[mine]))
        every = np.concatenate(differences)
        gap = Gap(version, float(every.mean()), float(every.max()), len(every))
        self.compared += 1
        if self.worst is None or not gap.mean <= self.worst.mean:  # a NaN is the worst of all
            self.worst = gap
        return gap
