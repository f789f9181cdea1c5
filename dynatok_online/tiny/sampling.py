"""Sample tasks under edits with a plain loop and a real KV cache: no engine.

The rows of a batch step together, one character at a time. Prompts are padded on the left, and a
slot keeps its width, so a row keeps its columns when its prompt changes. An edit computes the
positions that `scripted.Script` names, in order, and puts their keys and values into the row's
cache: `exact` samples with the law of a fresh prompt per state, `sticky` with that of an engine
which replaces the slot's own blocks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dynatok_online.policy import parse_policy
from dynatok_online.tasks.scripted import Script
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.tiny import tokenizer
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = list(tokenizer.VOCAB)


@dataclass(frozen=True)
class SampledPass:
    """The text sampled under one set of slot states; `start` is its index in the response."""

    states: dict[str, SlotState]
    prompt: str
    before: str
    text: str
    after: str


def sample(
    model: PreTrainedModel, tasks: Sequence[Task], *, seed: int = 0, temperature: float = 1.0
) -> list[list[SampledPass]]:
    """One response per task, as the list of its passes; every edit recomputes the prompt."""
    return [
        passes_of(task, decode(one.response.tolist()))
        for task, one in zip(
            tasks,
            sample_trajectories(model, tasks, seed=seed, temperature=temperature),
            strict=True,
        )
    ]


def sample_trajectories(
    model: PreTrainedModel,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    reuse: str = "exact",
    block_size: int = 1,
    forced: Sequence[Mapping[int, str]] = (),
) -> list[Trajectory]:
    """One response per task, with what each pass reused and computed.

    `forced`: for each task, response index -> text that stands there instead of sampled tokens.
    """
    import torch

    parse_policy(reuse, none=False, turned=False)
    length = max(task.max_tokens for task in tasks)
    scripts = [Script(task, encode, reuse=reuse, block_size=block_size) for task in tasks]
    prompts = [script.begin(np.zeros(0, np.int32))[0] for script in scripts]
    pads = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
    width, rows = max(map(len, prompts)), len(tasks)
    ids = torch.full((rows, width + length), tokenizer.PAD_ID)
    mask = torch.ones((rows, width + length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, pads[row] : width] = torch.from_numpy(prompt)
        mask[row, : pads[row]] = 0
    given = torch.full((rows, length), -1)
    for row, texts in enumerate(forced):
        for index, text in texts.items():
            given[row, index : index + len(text)] = torch.tensor(encode(text))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    generator = torch.Generator().manual_seed(seed)

    def feed(chosen: slice, start: int, stop: int, cache: Any = None) -> Any:
        return model(
            input_ids=ids[chosen, start:stop],
            attention_mask=mask[chosen, :stop],
            position_ids=positions[chosen, start:stop],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def edit(row: int, index: int) -> None:
        """Bring the row's cache to the state of the pass that begins at `index`."""
        at = width + index
        fed, runs = scripts[row].begin(ids[row, width:at].numpy().astype(np.int32))
        assert len(fed) == at - pads[row], "an edit moved a position"
        ids[row, pads[row] : at] = torch.from_numpy(fed)
        chosen = slice(row, row + 1)
        for start, stop in [(pads[row] + a, pads[row] + b) for a, b in runs]:
            below = DynamicCache()
            for i, layer in enumerate(cache.layers):
                keys, values = layer.keys[chosen, :, :start], layer.values[chosen, :, :start]
                below.update(keys, values, i)
            output = feed(chosen, start, stop, below)
            for layer, new in zip(cache.layers, output.past_key_values.layers, strict=True):
                layer.keys[chosen, :, start:stop] = new.keys[:, :, start:]
                layer.values[chosen, :, start:stop] = new.values[:, :, start:]
        logits[chosen] = output.logits[:, -1]

    from transformers import DynamicCache

    everything = slice(0, rows)
    logprobs = torch.zeros((rows, length))
    with torch.inference_mode():
        output = feed(everything, 0, width)
        cache = output.past_key_values
        logits = output.logits[:, -1].clone()
        for index in range(length):
            for row, task in enumerate(tasks):
                if any(one.index == index for one in task.edits):
                    edit(row, index)
            probabilities = (logits.float() / temperature).softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            drawn = torch.where(given[:, index] >= 0, given[:, index], drawn)
            logprobs[:, index] = logits.float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
            ids[:, width + index] = drawn
            output = feed(everything, width + index, width + index + 1, cache)
            logits = output.logits[:, -1].clone()
    return [
        scripts[row].finish(
            ids[row, width : width + task.max_tokens].tolist(),
            logprobs[row, : task.max_tokens].tolist(),
        )
        for row, task in enumerate(tasks)
    ]


def passes_of(task: Task, response: str) -> list[SampledPass]:
    """The passes of a response (one character per token) under the task's edits."""
    cuts = [0, *sorted({edit.index for edit in task.edits}), len(response)]
    return [
        SampledPass(
            states=task.states_at(start),
            prompt=task.render(task.states_at(start)),
            before=response[:start],
            text=response[start:stop],
            after=response[stop:],
        )
        for start, stop in pairwise(cuts)
    ]


def encode(text: str) -> list[int]:
    """Token ids of a text, one per character."""
    return [tokenizer.VOCAB.get(c, tokenizer.UNK_ID) for c in text]


def decode(ids: Sequence[int]) -> str:
    """The text of token ids. A special token is one character here too: indices stay aligned."""
    return "".join(_NAMES[i] if len(_NAMES[i]) == 1 else "\ufffd" for i in ids)
