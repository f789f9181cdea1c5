"""A stored trajectory told in the events of a live session, so that the same page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynatok_online.adherence.scoring import Decode
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.spans.blocks import blocks, recomputed_tokens
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Trajectory
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict

_BY_TEXT = {one.text: one.name for one in REQUIREMENTS.values()}


def events(trajectory: Trajectory, decode: Decode) -> list[dict[str, Any]]:
    """The log of a session with this one lane."""
    texts = TokenTexts(decode)
    texts.extend(trajectory.response.tolist())
    bounds = [(one.start, one.stop) for one in trajectory.passes]
    states = [_requirements(one.states, one.scores) for one in trajectory.passes]
    log: list[dict[str, Any]] = [
        {
            "type": "session",
            "session": trajectory.trajectory_id,
            "lanes": [trajectory.info.get("reuse", trajectory.policy)],
            "block_size": trajectory.block_size,
            "slots": {name: _plain(state) for name, state in (states[:1] or [{}])[0].items()},
            "info": trajectory.info,
            "replay": True,
        }
    ]
    edits = iter(list(enumerate(trajectory.edits)))
    upcoming = next(edits, None)
    shown: set[int] = set()
    for k, one in enumerate(trajectory.passes):
        before = trajectory.passes[k - 1].states if k else {}
        while upcoming is not None and upcoming[1].effective_at <= one.start:
            number, edit = upcoming
            was = before.get(edit.slot, "")
            change = {
                "text": edit.text,
                "from": was,
                "requirement": _BY_TEXT.get(edit.text.strip()),
            }
            log.append(
                {
                    "type": "edit",
                    "edit": number,
                    "slots": {edit.slot: change},
                    "source": edit.source,
                    "requested": edit.requested_at,
                }
            )
            log.append({"lane": 0, "type": "effect", "edit": number, "index": one.start})
            upcoming = next(edits, None)
        log += pass_events(trajectory, k, texts, decode, shown)
        judged = verdict(texts, bounds, k, states[k])
        # Where the text is not the requirement that was scored, the score alone is known.
        if judged["scores"] != one.scores:
            judged = {"scores": one.scores, "units": []}
        log.append({"lane": 0, "type": "verdict", "index": k, **judged})
    log += [{"lane": 0, "type": "finished", "finish": _finish(trajectory)}, {"type": "ended"}]
    return [{"seq": number, **event} for number, event in enumerate(log, 1)]


def pass_events(
    trajectory: Trajectory, k: int, texts: TokenTexts, decode: Decode, shown: set[int]
) -> list[dict[str, Any]]:
    """One pass; `shown` are the pieces that the page knows already."""
    one = trajectory.passes[k]
    log = piece_events(trajectory, k, decode, shown)
    log.append(
        {
            "type": "pass",
            "index": k,
            "start": one.start,
            "fed": trajectory.fed_length(k),
            "layout": list(one.layout),
            "states": one.states,
            "version": one.weight_versions[0].version if one.weight_versions else -1,
        }
    )
    log.append(
        {
            "type": "tokens",
            "start": one.start,
            "ids": texts.ids[one.start : one.stop],
            "texts": texts.texts[one.start : one.stop],
        }
    )
    log.append(end_event(trajectory, k))
    return [{"lane": 0, **event} for event in log]


def piece_events(
    trajectory: Trajectory, k: int, decode: Decode, shown: set[int]
) -> list[dict[str, Any]]:
    """The texts of the pieces of pass `k` that the page does not know."""
    log = []
    for piece in trajectory.passes[k].layout:
        if piece >= 0 and piece not in shown:
            shown.add(piece)
            found = TokenTexts(decode).extend(trajectory.pieces[piece].tolist())
            log.append({"type": "piece", "piece": piece, "texts": found})
    return log


def end_event(trajectory: Trajectory, k: int) -> dict[str, Any]:
    """What the engine reported of pass `k`."""
    one = trajectory.passes[k]
    logprobs = trajectory.logprobs[one.start : one.stop]
    return {
        "type": "passend",
        "index": k,
        "stop": one.stop,
        "cached": one.num_cached_tokens,
        "computed": trajectory.kv_length(k) - one.num_cached_tokens,
        "recomputed": recomputed_tokens(trajectory, k),
        "finish": one.finish_reason,
        "versions": [[run.version, run.length] for run in one.weight_versions],
        "logprobs": [round(float(v), 4) if np.isfinite(v) else None for v in logprobs],
        "blocks": [list(block) for block in blocks(trajectory, k)],
    }


def _requirements(states: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, SlotState]:
    """A pass stores what stood in a slot; which requirement that is follows from the text."""
    return {
        name: SlotState(text, _BY_TEXT.get(text.strip()) if name in scores else None)
        for name, text in states.items()
    }


def _plain(state: SlotState) -> dict[str, Any]:
    return {"text": state.text, "requirement": state.requirement}


def _finish(trajectory: Trajectory) -> str:
    return trajectory.passes[-1].finish_reason if trajectory.passes else "length"
