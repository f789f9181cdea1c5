"""`RUN/result.json`: what the processes wrote about themselves, in one object; actors added up.

Missing pieces (a run that was stopped, an evaluation that is off) leave their field out of the
inputs and null in the result; nothing is made up. Files that are there and cannot be read are
listed under `unread`, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launch.history import evaluations
from protocol.run.json_files import read_json, write_json

FROM_ACTOR = (
    "weight_syncs",
    "trajectories",
    "edits",
    "passes",
    "generated_tokens",
    "computed_tokens",
    "reused_tokens",
    "lost_cache_batches",
)
FROM_LEARNER = ("learner_steps", "logprob_gap", "policy_lag_max", "dropped_stale", "loss")


def collect(run_dir: Path, status: str, seconds: float) -> dict[str, Any]:
    """The result of a run. `status`: `finished`, `interrupted` or `failed`."""
    unread: dict[str, str] = {}

    def read(path: Path) -> dict[str, Any]:
        try:
            return read_json(path)
        except OSError as error:
            unread[path.name] = error.strerror or str(error)
            return {}

    actors = [read(path) for path in sorted(run_dir.glob("actor*.json"))]
    learner = read(run_dir / "learner.json")
    before = read(run_dir / "evaluation" / "before.json")
    after = read(run_dir / "evaluation" / "after.json")
    audits = [one["audit_mismatches"] for one in (*actors, learner) if "audit_mismatches" in one]
    return {
        "run_dir": str(run_dir),
        "status": status,
        **{name: learner.get(name) for name in FROM_LEARNER},
        **{name: _sum(one.get(name) for one in actors) for name in FROM_ACTOR},
        # Both sides audit the same trajectories; the worse one counts.
        "audit_mismatches": max(audits, default=None),
        "adherence_after_edit_before": before.get("adherence_after_edit"),
        "adherence_after_edit_after": after.get("adherence_after_edit"),
        # Half the 95 % interval of each, and over how many edits.
        "adherence_after_edit_before_half": before.get("adherence_after_edit_half"),
        "adherence_after_edit_after_half": after.get("adherence_after_edit_half"),
        "edits_judged_before": before.get("edits_judged"),
        "edits_judged_after": after.get("edits_judged"),
        "passes_after_edit": after.get("passes_after_edit"),
        "adherence_static_before": before.get("adherence_static"),
        "adherence_static_after": after.get("adherence_static"),
        "adherence_static_before_half": before.get("adherence_static_half"),
        "adherence_static_after_half": after.get("adherence_static_half"),
        "passes_static": after.get("passes_static"),
        # Share of runs of four words that stood in the response before: loops.
        "repetition_before": before.get("repetition"),
        "repetition_after": after.get("repetition"),
        # Share of the time that each side waited for the other, and what memory each took.
        "idle_share_learner": learner.get("idle_share"),
        "idle_share_actor": _idle(actors),
        "peak_memory_mb_learner": learner.get("peak_memory_mb"),
        "peak_memory_mb_actor": max(
            (one["peak_memory_mb"] for one in actors if "peak_memory_mb" in one), default=None
        ),
        "seconds": round(seconds, 1),
        **({"unread": unread} if unread else {}),
    }


def evidence(run_dir: Path) -> str:
    """What the evaluations of a run say of adherence after edits, and whether that is enough to
    tell a change; empty where it was not measured twice."""
    found = evaluations(run_dir)
    if len(found) < 2:
        return ""
    before, after = found["before"], found["after"]
    line = f"adherence after edit: {before} before, {after} after"
    halves = [math.inf if one.half is None else one.half for one in (before, after)]
    if abs(after.mean - before.mean) > math.hypot(*halves):
        return line
    return f"{line}; too little to tell a change: raise actor.evaluation.tasks, or train longer"


def _idle(actors: Iterable[dict[str, Any]]) -> float | None:
    """Share of their sessions' time that actors waited for leave to start a response."""
    known = [one for one in actors if "seconds_generate" in one]
    waited = sum(one["seconds_wait_for_credit"] for one in known)
    seconds = waited + sum(one["seconds_generate"] for one in known)
    return waited / seconds if seconds else None


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Over the actors that said something."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def write(run_dir: Path, result: dict[str, Any]) -> None:
    """Write `result.json` whole or not at all."""
    write_json(run_dir / "result.json", result)
