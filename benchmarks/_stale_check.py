"""The same mixed caches once more, without spans: transformers' own KV cache, segment by segment.

For every pass the KV of its positions is put together from the passes that computed it, and what
the pass computes itself is fed to the unprepared model with that as its cache.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from benchmarks._stale_families import FAMILIES
from benchmarks._stale_items import Encoder, answer_weights, keep_targets, make_scene
from benchmarks._stale_measure import precise, ready, score
from dynatok_online.rows.plan import plan_rows
from dynatok_online.trajectory import Trajectory

KV = list[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def response_logps(model: Any, trajectory: Trajectory) -> np.ndarray:
    """[R] log-probability of every response token, by an unprepared model with a KV cache."""
    from transformers import DynamicCache

    precise()
    out = np.zeros(len(trajectory.response))
    kept: list[KV] = []
    for k, one in enumerate(trajectory.passes):
        ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long, device=model.device)
        length, fed = len(ids), trajectory.fed_length(k)
        origin = np.full(length, k)
        for run in one.reuse:
            origin[run.start : run.stop] = run.origin
        cuts = [0, *(np.flatnonzero(np.diff(origin)) + 1).tolist(), length]
        mine: KV = []
        for a, b in itertools.pairwise(cuts):
            if b == a:
                continue
            if origin[a] != k:
                new = [(x[:, :, a:b], y[:, :, a:b]) for x, y in kept[origin[a]]]
            else:
                cache = DynamicCache()
                for layer, (x, y) in enumerate(mine):
                    cache.update(x, y, layer)
                logits = model(
                    input_ids=ids[None, a:b],
                    past_key_values=cache,
                    position_ids=torch.arange(a, b, device=model.device)[None],
                    use_cache=True,
                ).logits[0]
                logp = torch.log_softmax(logits.float(), -1)
                for position in range(max(a, fed - 1), min(b, length - 1)):
                    target = int(ids[position + 1])
                    out[one.start + position + 1 - fed] = float(logp[position - a, target])
                new = [(layer.keys[:, :, a:b], layer.values[:, :, a:b]) for layer in cache.layers]
            if mine:
                mine = [
                    (torch.cat([x, u], 2), torch.cat([y, v], 2))
                    for (x, y), (u, v) in zip(mine, new, strict=True)
                ]
            else:
                mine = new
        kept.append(mine)
    return out


def compare(model: Any, path: str, encode: Encoder) -> dict[str, Any]:
    """Largest difference of an answer's log-probability, over a few items of every family."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    plain = plain.to(model.device).eval()
    worst, count = 0.0, 0
    for family in FAMILIES.values():
        scene = make_scene(family, "heldout", 0, 50, encode)
        old, new, *_ = family.heldout
        for states, last in (((new,), 1), ((old, new), 1), ((old, new), 8), ((old, new, old), 1)):
            written = states[:-1] or (old,)
            answer = family.answer(scene.template, states[-1])
            one = scene.trajectory(states, written, scene.template.cue, answer, last)
            weights = answer_weights(one, len(encode(answer)))
            rows = [keep_targets(row) for row in plan_rows([one], [weights])]
            found = float(score(model, ready(rows), 1)[0])
            wanted = float(response_logps(plain, one)[weights > 0].sum())
            worst, count = max(worst, abs(found - wanted)), count + 1
    return {"largest_difference": worst, "answers": count}
