"""What the experiment on a real model measures: how held-out tasks are followed, and how fluently.

Scores are kept one by one, by requirement, so that whoever reads the raw lines can draw intervals
over passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks._adherence_arms import Arm
from benchmarks._real_arms import BLOCK_SIZE, insertions, without_corrections, without_edits
from benchmarks._real_data import TEMPERATURE, Speech
from benchmarks._sampling import sample_trajectories
from dynatok_online import attention
from dynatok_online.adherence.measures import follow, repetition
from dynatok_online.requirements import requirement
from dynatok_online.rows.plan import plan_rows
from dynatok_online.tasks.scripted import computed_tokens, scripted_trajectory
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory

PROBES = 8
"""Trajectories whose recorded log-probabilities are computed again from their spans."""
SHOWN = 6
"""Responses whose text is kept."""
MOST_JUDGED = 2048
"""Tokens of a row under the base model."""

Scores = dict[str, list[float]]


def measure(
    model: Any,
    base: Any,
    speech: Speech,
    tasks: Sequence[Task],
    modes: Sequence[str],
    *,
    seed: int,
    kernel: str,
) -> dict[str, dict[str, Any]]:
    """Sample the tasks in every mode (`exact`, `sticky`, `appended`), all together; judge them."""
    model.set_attn_implementation("sdpa")
    model.eval()
    asked: list[Task] = []
    forced: list[dict[int, list[int]]] = []
    for mode in modes:
        appended = mode == "appended"
        asked += [without_edits(one, speech) if appended else one for one in tasks]
        forced += [insertions(one, speech) if appended else {} for one in tasks]
    trajectories = sample_trajectories(
        model,
        asked,
        speech.encode,
        stop={speech.stop},
        reuse=[
            "sticky" if mode == "sticky" else "exact" for mode in modes for _ in range(len(tasks))
        ],
        block_size=BLOCK_SIZE,
        temperature=TEMPERATURE,
        seed=seed,
        forced=forced,
    )
    out = {}
    for i, mode in enumerate(modes):
        group = trajectories[i * len(tasks) : (i + 1) * len(tasks)]
        responses = [one.response.tolist() for one in group]
        if mode == "appended":
            responses = [
                without_corrections(task, tokens, speech)
                for task, tokens in zip(tasks, responses, strict=True)
            ]
        sampled = sum(map(len, responses))
        out[mode] = {
            **judge(speech, tasks, responses),
            **fluency(base, speech, tasks, responses),
            "computed_per_token": sum(map(computed_tokens, group)) / sampled,
            "logprob_gap": gap(model, group[:PROBES], kernel),
            "samples": samples(speech, tasks, responses),
        }
    return out


def modes_of(arm: Arm) -> tuple[str, ...]:
    """How a trained arm is made to generate: packed arms both ways, each crossing the other."""
    if arm.appended:
        return ("appended",)
    return ("exact", "sticky") if arm.name.startswith("packed") else ("exact",)


def judge(
    speech: Speech, tasks: Sequence[Task], responses: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Scores by requirement: of slots that were edited, of the first pass, of slots kept.

    `unreached`: edits that the response ended before. `silent`: edits under which nothing could
    be judged. Latency is in tokens, an edit that is never followed counts with its whole pass.
    """
    after: Scores = {}
    holds: dict[str, int] = {}
    static: Scores = {}
    kept: Scores = {}
    latencies: list[int] = []
    never = silent = unreached = edits = 0
    for task, tokens in zip(tasks, responses, strict=True):
        starts = [0, *sorted({one.index for one in task.edits if one.index < len(tokens)})]
        unreached += sum(one.index >= len(tokens) for one in task.edits)
        edits += len(task.edits)
        texts = [
            speech.decode(tokens[a:b])
            for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)
        ]
        for k, (start, text) in enumerate(zip(starts, texts, strict=True)):
            before, behind = "".join(texts[:k]), "".join(texts[k + 1 :])
            changed = {one.slot for one in task.edits if one.index == start}
            for slot, state in task.states_at(start).items():
                name = str(state.requirement)
                followed = follow(requirement(name), text, before=before, after=behind)
                if followed.score is None:
                    silent += slot in changed
                    continue
                score = round(followed.score, 4)
                if slot in changed:
                    after.setdefault(name, []).append(score)
                    holds[name] = holds.get(name, 0) + (score == 1)
                    stop = starts[k + 1] if k + 1 < len(starts) else len(tokens)
                    never += followed.latency is None
                    latencies.append(
                        stop - start
                        if followed.latency is None
                        else tokens_before(speech, tokens[start:stop], followed.latency)
                    )
                else:
                    (kept if k else static).setdefault(name, []).append(score)
    return {
        "after": after,
        "after_holds": holds,
        "static": static,
        "kept": kept,
        "edits": edits,
        "unreached": unreached,
        "silent": silent,
        "never": never,
        "latency": fmean(latencies) if latencies else float("nan"),
        "length": fmean(map(len, responses)),
        "stopped": fmean(bool(len(one)) and one[-1] == speech.stop for one in responses),
    }


def samples(
    speech: Speech, tasks: Sequence[Task], responses: Sequence[Sequence[int]]
) -> list[list[list[str]]]:
    """The first responses, for people: the slots of each pass and what was written under them."""
    out = []
    for task, tokens in list(zip(tasks, responses, strict=True))[:SHOWN]:
        starts = [0, *sorted({one.index for one in task.edits if one.index < len(tokens)})]
        out.append(
            [
                [
                    ", ".join(state.text.strip() for state in task.states_at(a).values()),
                    speech.decode(tokens[a:b]),
                ]
                for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)
            ]
        )
    return out


def tokens_before(speech: Speech, tokens: Sequence[int], characters: int) -> int:
    """How many tokens lie wholly before a character of their text."""
    at = 0
    for count, token in enumerate(tokens):
        at += len(speech.decode([token]))
        if at > characters:
            return count
    return len(tokens)


def fluency(
    base: Any, speech: Speech, tasks: Sequence[Task], responses: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Per-token NLL under the untrained model, prompt in each pass's states; repeated runs."""
    trajectories = [
        scripted_trajectory(task, tokens, speech.encode)
        for task, tokens in zip(tasks, responses, strict=True)
        if len(tokens)
    ]
    attention.prepare(base, "concat")
    logprobs = torch.cat(_logprobs(base, trajectories))
    return {
        "nll_under_base": float(-logprobs.mean()),
        "repetition": fmean(repetition(speech.decode(one)) for one in responses),
    }


def gap(model: Any, trajectories: Sequence[Trajectory], kernel: str) -> dict[str, float]:
    """Recorded log-probabilities against those of a packed forward: mean and largest distance."""
    implementation = model.config._attn_implementation
    attention.prepare(model, kernel)
    apart = []
    for row in plan_rows(trajectories, max_tokens=MOST_JUDGED):
        (again,) = _row_logprobs(model, [row])
        apart.append(np.abs(again.cpu().numpy() - row.logprobs))
    model.set_attn_implementation(implementation)
    joined = np.concatenate(apart)
    return {"mean": float(joined.mean()), "most": float(joined.max())}


def _logprobs(model: Any, trajectories: Sequence[Trajectory]) -> list[torch.Tensor]:
    return _row_logprobs(model, plan_rows(trajectories, max_tokens=MOST_JUDGED))


def _row_logprobs(model: Any, rows: Sequence[Any]) -> list[torch.Tensor]:
    out = []
    with torch.no_grad():
        for row in rows:
            logits = model(**attention.inputs(row, model.device), use_cache=False).logits[0]
            targets = torch.as_tensor(row.targets, dtype=torch.long, device=model.device)
            out.append(
                -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            )
    return out
