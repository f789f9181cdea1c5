"""A stored trajectory told in the events of a live session, so that the same page shows it."""

from __future__ import annotations

from collections.abc import Mapping

from dynatok_online.adherence.scoring import Decode
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Edit, Pass, Trajectory
from dynatok_online.view.events import Event, LaneEvents, edit_event, plain_slot


def events(
    trajectory: Trajectory, decode: Decode, control: Mapping[int, str] | None = None
) -> list[Event]:
    """The log of a session with this one lane; see `LaneEvents`."""
    states = [_states(one) for one in trajectory.passes]
    first = states[0] if states else {}
    log: list[Event] = [
        {
            "type": "session",
            "session": trajectory.trajectory_id,
            "lanes": [trajectory.info.get("reuse", trajectory.policy)],
            "block_size": trajectory.block_size,
            "slots": {name: plain_slot(state) for name, state in first.items()},
            "info": trajectory.info,
            "replay": True,
        }
    ]
    lane = LaneEvents(decode, lambda event: log.append({"lane": 0, **event}), control)
    edits = list(enumerate(trajectory.edits))
    for k, one in enumerate(trajectory.passes):
        while edits and edits[0][1].effective_at <= one.start:
            number, edit = edits.pop(0)
            log.append(_edit(number, edit, trajectory.passes[k - 1].states if k else {}))
            log.append({"lane": 0, "type": "effect", "edit": number, "index": one.start})
        version = one.weight_versions[0].version if one.weight_versions else -1
        lane.begin(states[k], trajectory.fed_length(k), version)
        lane.tokens(trajectory.response[one.start : one.stop].tolist())
        lane.end(trajectory)
    lane.finish(trajectory)
    log.append({"type": "ended"})
    return [{"seq": number, **event} for number, event in enumerate(log, 1)]


def _edit(number: int, edit: Edit, before: Mapping[str, str]) -> Event:
    after = {edit.slot: SlotState(edit.text, _requirement(edit.text))}
    told = edit_event(number, before, after)
    return told | {"source": edit.source, "requested": edit.requested_at}


def _states(one: Pass) -> dict[str, SlotState]:
    """A pass stores what stood in a slot; which requirement that is follows from the text."""
    return {
        name: SlotState(text, _requirement(text) if name in one.scores else None)
        for name, text in one.states.items()
    }


def _requirement(text: str) -> str | None:
    return next((one.name for one in REQUIREMENTS.values() if one.text == text.strip()), None)
