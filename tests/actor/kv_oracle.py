"""Log-probabilities of a trajectory from its records, with a real KV cache that is swapped.

Independent of the learner: one forward per run of positions that a pass computed under one set of
weights, on the cached entries that the pass's records name. Knows passes under several weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from dynatok_online.trajectory import OUTSIDE, Trajectory
from tests.oracle import turned

Entry = list[tuple[torch.Tensor, torch.Tensor]]
"""One position's key and value in each layer."""


def kv_logprobs(models: Mapping[int, Any], trajectory: Trajectory) -> np.ndarray:
    """[R] log-probability of every response token under the weights that sampled it."""
    held: list[list[Entry]] = []
    found = np.full(len(trajectory.response), np.nan)
    for k, one in enumerate(trajectory.passes):
        tokens, fed = trajectory.tokens(k), trajectory.fed_length(k)
        length = trajectory.kv_length(k)
        sampled_by = trajectory.versions()[one.start : one.stop]
        version = [int(sampled_by[max(0, p - fed + 1)]) for p in range(length)]
        source = {p: run.origin for run in one.reuse for p in range(run.start, run.stop)}
        moved = {p: by for run, by in one.moved_reuse() for p in range(run.start, run.stop)}
        began = one.weight_versions[0].version
        for p, origin in source.items():
            if origin == OUTSIDE:  # computed by another request of the same cache salt
                version[p] = began
        mine: list[Entry] = []
        places = [(source.get(p, OUTSIDE), version[p], p) for p in range(length)]
        for (origin, used), run in groupby(places, lambda place: place[:2]):
            positions = [p for _, _, p in run]
            if origin != OUTSIDE:
                mine += [_turned(models[began], held[origin], p, moved[p]) for p in positions]
                continue
            logits = _forward(models[used], tokens, positions, mine)
            for p, row in zip(positions, logits.log_softmax(-1), strict=True):
                if p >= fed - 1:
                    found[one.start + p - fed + 1] = float(row[int(tokens[p + 1])])
        held.append(mine)
    return found


def _turned(model: Any, held: list[Entry], position: int, shift: int) -> Entry:
    """What stands at a position now, and stood `shift` lower where it was computed."""
    return [(turned(model, key, shift), value) for key, value in held[position - shift]]


def _forward(model: Any, tokens: np.ndarray, positions: list[int], mine: list[Entry]) -> Any:
    """[n, V] logits at `positions`; their keys and values are appended to `mine`."""
    cache = DynamicCache()
    if mine:
        for layer in range(len(mine[0])):
            keys = torch.cat([entry[layer][0] for entry in mine], 2)
            cache.update(keys, torch.cat([entry[layer][1] for entry in mine], 2), layer)
    with torch.no_grad():
        step = model(
            input_ids=torch.as_tensor(tokens[positions].astype(np.int64))[None],
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
            use_cache=True,
        )
    count = len(mine)
    for i in range(len(positions)):
        at = slice(count + i, count + i + 1)
        mine.append(
            [(one.keys[:, :, at], one.values[:, :, at]) for one in step.past_key_values.layers]
        )
    return step.logits[0]
