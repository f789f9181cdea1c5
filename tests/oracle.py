"""The independent oracle: one plain transformers forward per pass. Knows no spans, no rows.

`exact`: the pass's own text, causal attention, nothing else. `sticky`: a step-by-step decode with
a real KV cache per layer, in which a pass takes the cached entries that its records name and
computes the others, one token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F

from dynatok_online.spans.ghosts import edited_stretches
from dynatok_online.trajectory import OUTSIDE, RESPONSE, Trajectory


def oracle_loss(
    model: torch.nn.Module,
    trajectories: Sequence[Trajectory],
    weights: Sequence[np.ndarray] | None = None,
) -> torch.Tensor:
    """Sum of weighted losses over all response tokens, divided by their number."""
    total, count = [], 0
    for t, trajectory in enumerate(trajectories):
        run = sticky_logits if trajectory.policy == "sticky" else exact_logits
        for k, logits in run(model, trajectory):
            one = trajectory.passes[k]
            target = torch.from_numpy(trajectory.response[one.start : one.stop].astype(np.int64))
            nll = F.cross_entropy(logits, target, reduction="none")
            if weights is not None:
                nll = nll * torch.from_numpy(weights[t][one.start : one.stop]).to(nll.dtype)
            total.append(nll.sum())
            count += len(target)
    return torch.stack(total).sum() / count


def text_of(trajectory: Trajectory, k: int) -> list[int]:
    one = trajectory.passes[k]
    out: list[int] = []
    for i in one.layout:
        part = trajectory.response[: one.start] if i == RESPONSE else trajectory.pieces[i]
        out += part.tolist()
    return out


def exact_logits(model: torch.nn.Module, trajectory: Trajectory) -> list[tuple[int, torch.Tensor]]:
    """(pass, [tokens sampled, V] logits), each from one forward over prompt and response."""
    out = []
    for k, one in enumerate(trajectory.passes):
        if one.stop == one.start:
            continue
        fed = text_of(trajectory, k)
        text = fed + trajectory.response[one.start : one.stop].tolist()
        ids = torch.tensor([text[:-1]])
        out.append((k, model(input_ids=ids, use_cache=False).logits[0, len(fed) - 1 :]))
    return out


def sticky_logits(model: torch.nn.Module, trajectory: Trajectory) -> list[tuple[int, torch.Tensor]]:
    """(pass, [tokens sampled, V] logits) by decoding token by token over a swapped KV cache."""
    from transformers import DynamicCache

    caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # pass -> position -> layers' KV
    out = []
    for k, one in enumerate(trajectory.passes):
        fed = text_of(trajectory, k)
        text = fed + trajectory.response[one.start : one.stop].tolist()
        length = len(fed) + max(0, one.stop - one.start - 1)
        source = {
            p: (run.origin, shift)
            for run, shift in one.moved_reuse()
            if run.origin != OUTSIDE
            for p in range(run.start, run.stop)
        }
        held: list[tuple[torch.Tensor, torch.Tensor]] = []
        logits = []
        for p in range(length):
            if p in source:
                origin, shift = source[p]
                keys, values = caches[origin][p - shift]
                held.append((turned(model, keys, shift), values))
                continue
            cache = DynamicCache()
            if held:
                for layer in range(len(held[0][0])):
                    cache.update(
                        torch.cat([keys[layer] for keys, _ in held], 2),
                        torch.cat([values[layer] for _, values in held], 2),
                        layer,
                    )
            step = model(
                input_ids=torch.tensor([[text[p]]]),
                position_ids=torch.tensor([[p]]),
                past_key_values=cache,
                use_cache=True,
            )
            layers = step.past_key_values.layers
            held.append(
                (
                    torch.stack([layer.keys[:, :, -1:] for layer in layers]),
                    torch.stack([layer.values[:, :, -1:] for layer in layers]),
                )
            )
            if p >= len(fed) - 1:
                logits.append(step.logits[0, -1])
        caches.append(held)
        if one.stop > one.start:
            out.append((k, torch.stack(logits)))
    return out


def turned(model: Any, keys: torch.Tensor, shift: int) -> torch.Tensor:
    """Keys [..., D], turned on by the model's own rotary embedding of position `shift`."""
    if not shift:
        return keys
    from transformers.models.llama.modeling_llama import rotate_half

    (rotary,) = (one for one in model.modules() if hasattr(one, "inv_freq"))
    cos, sin = rotary(keys, torch.tensor([[shift]]))
    cos, sin = cos[0] / rotary.attention_scaling, sin[0] / rotary.attention_scaling
    return keys * cos + rotate_half(keys) * sin


def without_edit(model: Any, one: Trajectory) -> np.ndarray:
    """[R] log-probability of each token had the edit before it not come: by a truncated pass of its
    own for every edit (sticky: decoded step by step). NaN before any."""
    out = np.full(len(one.response), np.nan)
    run = sticky_logits if one.policy == "sticky" else exact_logits
    for before, after in edited_stretches(one):
        other = _as_if_unedited(one, before, after)
        start = one.passes[after[0]].start
        with torch.no_grad():
            k, logits = run(model, other)[-1]
        assert k == before
        logprobs = logits.log_softmax(-1).numpy()
        first = other.passes[k].start
        for i in range(start, len(other.response)):
            out[i] = logprobs[i - first, other.response[i]]
    return out


def _as_if_unedited(one: Trajectory, before: int, after: Sequence[int]) -> Trajectory:
    """The same tokens, with the last pass before an edit going on to the end of what followed."""
    stop = one.passes[after[-1]].stop
    passes = list(one.passes[: before + 1])
    passes[before] = msgspec.structs.replace(passes[before], stop=stop, weight_versions=())
    return msgspec.structs.replace(
        one, passes=tuple(passes), response=one.response[:stop], logprobs=one.logprobs[:stop]
    )


def attention_on_the_prompt(eager: Any, one: Trajectory) -> np.ndarray:
    """[R] share of the last layer's attention that is on the prompt, mean over heads, where each
    token is predicted; a forward per pass of a model with eager attention. Exact reuse."""
    mass = np.zeros(len(one.response))
    for k, part in enumerate(one.passes):
        if part.start == part.stop:
            continue
        prompt: list[bool] = []
        for i in part.layout:
            count = part.start if i == RESPONSE else len(one.pieces[i])
            prompt += [i != RESPONSE] * count
        ids = torch.as_tensor(one.tokens(k)[:-1].astype(np.int64))[None]
        with torch.no_grad():
            out = eager(ids, use_cache=False, output_attentions=True)
        weights = out.attentions[-1][0].mean(0).numpy()
        for i in range(part.start, part.stop):
            at = one.fed_length(k) - 1 + i - part.start
            mass[i] = weights[at, : len(prompt)][prompt].sum()
    return mass
