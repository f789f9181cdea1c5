"""What the adherence experiment measures on held-out tasks of the tiny world."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from benchmarks._adherence_arms import BLOCK_SIZE, insertions, removed_corrections, without_edits
from dynatok_online import attention
from dynatok_online.adherence import outcomes as adherence
from dynatok_online.adherence.measures import repetition
from dynatok_online.adherence.outcomes import Judged
from dynatok_online.rows.plan import plan_rows
from dynatok_online.tasks.scripted import computed_tokens, scripted_trajectory
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import decode, encode, sample_trajectories
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sample(
    model: PreTrainedModel, tasks: Sequence[Task], *, reuse: str, appended: bool, seed: int
) -> tuple[list[str], list[Trajectory]]:
    """One response per task, and how it was written. Corrections are not part of a response."""
    model.set_attn_implementation("sdpa")
    model.eval()
    asked = [without_edits(task) for task in tasks] if appended else tasks
    trajectories = sample_trajectories(
        model,
        asked,
        seed=seed,
        reuse=reuse,
        block_size=BLOCK_SIZE,
        forced=[insertions(task) for task in tasks] if appended else (),
    )
    texts = [decode(one.response.tolist()) for one in trajectories]
    if appended:
        texts = [removed_corrections(*pair) for pair in zip(tasks, texts, strict=True)]
    return texts, trajectories


def adherence_after_edit(tasks: Sequence[Task], texts: Sequence[str]) -> float:
    """The mean score of the edited slot over the passes that follow an edit."""
    return fmean(one.score for one in _judged(tasks, texts) if one.edited)


def measure(
    model: PreTrainedModel,
    base: PreTrainedModel,
    tasks: Sequence[Task],
    *,
    reuse: str,
    appended: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Sample the tasks, and judge the responses. `base` must be prepared for rows."""
    texts, trajectories = sample(model, tasks, reuse=reuse, appended=appended, seed=seed)
    sampled = sum(task.max_tokens for task in tasks)
    edits = sum(len(task.edits) for task in tasks)
    computed = sum(map(computed_tokens, trajectories))
    least = sum(one.fed_length(0) + len(one.response) - 1 for one in trajectories)
    return {
        **judge(tasks, texts),
        **fluency(base, tasks, texts),
        "computed_per_token": computed / sampled,
        # Corrections are fed on top of the response; everything else is computed a second time.
        "extra_tokens_per_edit": (
            sum(len(one.response) for one in trajectories) - sampled + computed - least
        )
        / edits,
    }


def judge(tasks: Sequence[Task], texts: Sequence[str]) -> dict[str, Any]:
    """Adherence before and after edits, of slots that were kept, and its latency."""
    judged = _judged(tasks, texts)
    edited = [one for one in judged if one.edited]
    by_slot: dict[str, list[float]] = {}
    for one in edited:
        by_slot.setdefault(one.slot, []).append(one.score)
    return {
        "adherence_after_edit": fmean(one.score for one in edited),
        "by_slot": {slot: fmean(values) for slot, values in sorted(by_slot.items())},
        "adherence_static": fmean(one.score for one in judged if one.static),
        "adherence_kept": fmean(one.score for one in judged if not (one.static or one.edited)),
        # An edit that is never followed counts with the length of the text that follows it.
        "latency": fmean(one.tokens if one.latency is None else one.latency for one in edited),
        "never": fmean(one.latency is None for one in edited),
    }


def fluency(base: PreTrainedModel, tasks: Sequence[Task], texts: Sequence[str]) -> dict[str, float]:
    """Per-token NLL under the base model, prompt in the states of each pass; repeated runs."""
    trajectories = [_as_written(*pair) for pair in zip(tasks, texts, strict=True)]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in plan_rows(trajectories, max_tokens=4096):
            logits = base(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
            targets = torch.as_tensor(row.targets, dtype=torch.long)
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    return {
        "nll_under_base": total / count,
        "repetition": fmean(map(repetition, texts)),
        "known_words": fmean(map(_known, texts)),
    }


def gold(base: PreTrainedModel, tasks: Sequence[Task]) -> dict[str, Any]:
    """The same measures on gold responses: what a perfect writer would get."""
    texts = [world.gold_response(task) for task in tasks]
    return {**judge(tasks, texts), **fluency(base, tasks, texts)}


def _judged(tasks: Sequence[Task], texts: Sequence[str]) -> list[Judged]:
    """Every slot with evidence of every stretch; a token is a character here."""
    return [
        one
        for task, text in zip(tasks, texts, strict=True)
        for one in adherence.judge(task, _as_written(task, text), decode)
    ]


def _as_written(task: Task, text: str) -> Trajectory:
    """A response under the task's edits; special tokens became characters that no word has."""
    return scripted_trajectory(task, encode(text.replace("\ufffd", "~")), encode)


def _known(text: str) -> float:
    """Share of the words that the tiny world has; the last one may be cut off."""
    words = [word.strip(".").lower() for word in text.split()][:-1]
    return fmean(word.isdecimal() or word in world.words() for word in words) if words else 1.0
