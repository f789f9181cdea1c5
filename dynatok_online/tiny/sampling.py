"""Sample tasks under edits with a plain loop, exactly: an edit recomputes the whole prompt.

The rows of a batch step together, one character at a time. Prompts are padded on the left, and a
slot keeps its width, so a row keeps its columns when its prompt changes: its cached keys and
values are computed anew from the edited prompt and the response so far, and put in their place.
No engine, for checks and experiments; what it samples has the law of a fresh prompt per state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dynatok_online.requirements import requirement
from dynatok_online.tasks import SlotState, Task
from dynatok_online.tiny import tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SampledPass:
    """The text sampled under one set of slot states; `start` is its index in the response."""

    states: dict[str, SlotState]
    edited: frozenset[str]
    prompt: str
    before: str
    text: str
    after: str

    def scores(self) -> dict[str, float]:
        """Slot -> verifier score of this pass, for the slots with evidence."""
        scores = {}
        for slot, state in self.states.items():
            if state.requirement is not None:
                verdict = requirement(state.requirement).verify(
                    self.text, before=self.before, after=self.after
                )
                if verdict.score is not None:
                    scores[slot] = verdict.score
        return scores


def sample(
    model: PreTrainedModel, tasks: Sequence[Task], *, seed: int = 0, temperature: float = 1.0
) -> list[list[SampledPass]]:
    """One response per task, as the list of its passes."""
    import torch

    length = max(task.max_tokens for task in tasks)
    prompts = [task.render(task.states) for task in tasks]
    width = max(map(len, prompts))
    rows = len(tasks)
    ids = torch.full((rows, width + length), tokenizer.PAD_ID)
    mask = torch.zeros((rows, width + length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) : width] = _encode(prompt)
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    generator = torch.Generator().manual_seed(seed)

    def feed(chosen: torch.Tensor, start: int, stop: int, cache: Any = None) -> Any:
        return model(
            input_ids=ids[chosen, start:stop],
            attention_mask=mask[chosen, :stop],
            position_ids=positions[chosen, start:stop],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    everything = torch.arange(rows)
    with torch.inference_mode():
        output = feed(everything, 0, width)
        cache = output.past_key_values
        logits = output.logits[:, -1]
        for index in range(length):
            edited = [
                row for row, task in enumerate(tasks) if any(e.index == index for e in task.edits)
            ]
            if edited:
                for row in edited:
                    task = tasks[row]
                    prompt = task.render(task.states_at(index))
                    assert len(prompt) == len(prompts[row]), "an edit moved a position"
                    ids[row, width - len(prompt) : width] = _encode(prompt)
                chosen = torch.tensor(edited)
                fresh = feed(chosen, 0, width + index)
                logits[chosen] = fresh.logits[:, -1]
                for layer, new in zip(cache.layers, fresh.past_key_values.layers, strict=True):
                    layer.keys[chosen] = new.keys
                    layer.values[chosen] = new.values
            probabilities = (logits.float() / temperature).softmax(-1)
            column = width + index
            ids[:, column] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            output = feed(everything, column, column + 1, cache)
            logits = output.logits[:, -1].clone()
    return [
        _passes(task, _decode(ids[row, width : width + task.max_tokens]))
        for row, task in enumerate(tasks)
    ]


def _passes(task: Task, response: str) -> list[SampledPass]:
    cuts = [0, *sorted({edit.index for edit in task.edits}), len(response)]
    return [
        SampledPass(
            states=task.states_at(start),
            edited=frozenset(edit.slot for edit in task.edits if edit.index == start),
            prompt=task.render(task.states_at(start)),
            before=response[:start],
            text=response[start:stop],
            after=response[stop:],
        )
        for start, stop in pairwise(cuts)
    ]


def _encode(text: str) -> torch.Tensor:
    import torch

    return torch.tensor([tokenizer.VOCAB[c] for c in text])


def _decode(ids: torch.Tensor) -> str:
    names = list(tokenizer.VOCAB)
    # A special token is one character here too, so that indices stay aligned.
    return "".join(names[i] if len(names[i]) == 1 else "\ufffd" for i in ids.tolist())
