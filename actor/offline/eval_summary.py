"""The measures of `dynatok eval`: of one seed, and over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

import msgspec

from actor.sessions.live_session import Finished
from dynatok_online.adherence.coverage import Ending, coverage
from dynatok_online.adherence.drift import drift
from dynatok_online.adherence.fluency import nll_under
from dynatok_online.adherence.measures import interval, repetition
from dynatok_online.adherence.outcomes import Judged
from dynatok_online.adherence.stale import stale_share
from dynatok_online.adherence.summary import share
from dynatok_online.spans.blocks import recomputed_tokens

MEASURES = {
    "adherence_after_edit": "adherence after an edit",
    "adherence_static": "adherence before the first edit",
    "latency": "tokens from an edit to the first compliant sentence",
    "never": "share of edits that are never followed",
    "repetition": "share of runs of four words that stood before",
    "nll_under_base": "NLL per token under the base model",
    "drift": "KL from the base model before the first edit, nats per token",
    "valid": "responses whose text since the last edit is valid",
    "unique": "responses whose text since the last edit is unique",
    "distinct_valid": "responses that are both",
    "stale_share": "share of an edit that old KV swallows",
    "computed_per_token": "tokens computed per generated token",
    "recomputed_per_edit": "tokens computed again per edit",
}
"""What is measured, in the order of the report."""


@dataclass(frozen=True)
class Sample:
    """One response, and what came of it."""

    finished: Finished
    text: str
    judged: Sequence[Judged]
    ending: Ending | None = None
    """What it ended in, as coverage counts it."""
    task: str = ""
    """The task that it responds to; several responses may have the same."""


def summary(
    samples: Sequence[Sample], base_model: str = "", *, model: str = "", stale: bool = False
) -> dict[str, Any]:
    """The measures of one seed, in all and per requirement; None where there is no evidence.

    `base_model` judges fluency and drift; `model` is the one that wrote, needed for drift and for
    `stale`.
    """
    by_name: dict[str, list[Judged]] = defaultdict(list)
    for sample in samples:
        for one in sample.judged:
            by_name[one.requirement].append(one)
    counts = [sample.finished.counts for sample in samples]
    generated = sum(one.generated_tokens for one in counts)
    computed = sum(one.computed_tokens for one in counts)
    everything: dict[str, float | None] = {
        **_adherence([one for sample in samples for one in sample.judged]),
        "repetition": _mean([repetition(sample.text) for sample in samples]),
        # None where nobody knows what an engine computed.
        "computed_per_token": computed / max(1, generated) if computed else None,
        "recomputed_per_edit": _mean([n for one in samples for n in _recomputed(one)]),
    }
    trajectories = [sample.finished.trajectory for sample in samples]
    if base_model:
        everything["nll_under_base"] = nll_under(_loaded(base_model), trajectories)
    groups: dict[str, list[Ending | None]] = defaultdict(list)
    for sample in samples:
        if sample.task:
            groups[sample.task].append(sample.ending)
    shares: dict[str, dict[str, Any]] = {}
    if max(map(len, groups.values()), default=0) > 1:
        shares |= coverage(list(groups.values()))
    if base_model and model:
        shares["drift"] = share(drift(_loaded(model), _loaded(base_model), trajectories))
    if stale:
        shares["stale_share"] = stale_share(_loaded(model), trajectories)
    for name, measured in shares.items():
        everything[name] = measured["mean"]
        everything[f"{name}_half"] = measured["half"]
        everything[f"{name}_count"] = measured["count"]
    return {
        "all": everything,
        "responses": len(samples),
        "edits": sum(one.edits for one in counts),
        "by_requirement": {name: _adherence(units) for name, units in sorted(by_name.items())},
    }


def _recomputed(sample: Sample) -> list[int]:
    """Of each pass that an edit began: tokens computed although they had been before."""
    trajectory = sample.finished.trajectory
    edited = {edit.effective_at for edit in trajectory.edits}
    return [
        recomputed_tokens(trajectory, k)
        for k, one in enumerate(trajectory.passes)
        if k and one.start in edited
    ]


def _adherence(judged: Sequence[Judged]) -> dict[str, float | None]:
    edited = [one for one in judged if one.edited]
    static = [one for one in judged if one.static]
    after, before = (share([one.score for one in part]) for part in (edited, static))
    return {
        "adherence_after_edit": after["mean"],
        "adherence_after_edit_half": after["half"],
        "edits_judged": after["count"],
        "adherence_static": before["mean"],
        "adherence_static_half": before["half"],
        # An edit that is never followed counts with the length of the text that follows it.
        "latency": _mean([one.tokens if one.latency is None else one.latency for one in edited]),
        "never": _mean([float(one.latency is None) for one in edited]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def over_seeds(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same measures as intervals over seeds; a seed without evidence is left out."""
    names = sorted({name for one in seeds for name in one["by_requirement"]})
    return {
        "all": _intervals([one["all"] for one in seeds]),
        "by_requirement": {
            name: _intervals([one["by_requirement"].get(name, {}) for one in seeds])
            for name in names
        },
        "edits_judged": {
            "all": sum(one["all"]["edits_judged"] for one in seeds),
            "by_requirement": {
                name: sum(
                    one["by_requirement"].get(name, {}).get("edits_judged", 0) for one in seeds
                )
                for name in names
            },
        },
    }


def _intervals(seeds: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float]]:
    out = {}
    for name in MEASURES:
        values = [value for one in seeds if (value := one.get(name)) is not None]
        if values:
            one = interval(values)
            if len(seeds) == 1 and (half := seeds[0].get(f"{name}_half")) is not None:
                one = replace(one, half=half)  # over its edits: there are no other seeds
            out[name] = msgspec.to_builtins(one)
    return out


@lru_cache(maxsize=2)
def _loaded(model: str) -> Any:
    """A model of that name, prepared for rows. Every seed and policy asks for the same two."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from dynatok_online import attention, tiny

    logging.disable_progress_bar()
    found = AutoModelForCausalLM.from_pretrained(tiny.resolve(model)).eval()
    attention.prepare(found, "concat")
    return found
