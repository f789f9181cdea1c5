"""A response told as events: in pieces, taken back, and told again where the record differs."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Trajectory
from dynatok_online.view.events import LaneEvents
from dynatok_online.view.replay import events
from tests.simulate import simulate
from tests.test_trajectory import worked_example
from tests.view.folding import folded


def decode(ids: Any) -> str:
    return "".join(map(chr, ids))


def states(trajectory: Trajectory, k: int) -> dict[str, SlotState]:
    return {name: SlotState(text) for name, text in trajectory.passes[k].states.items()}


def told(trajectory: Trajectory, lane: LaneEvents) -> None:
    """Pass by pass, as a live lane does it."""
    for k, one in enumerate(trajectory.passes):
        lane.begin(states(trajectory, k), trajectory.fed_length(k), 0)
        for token in trajectory.response[one.start : one.stop].tolist():
            lane.tokens([token])
        lane.end(trajectory)


def shown(log: list[dict[str, Any]]) -> dict[str, Any]:
    return folded([{"lane": 0, **event} for event in log], 0)


def plain(one: dict[str, Any]) -> dict[str, Any]:
    """Without what a replay takes from elsewhere."""
    passes = [
        {k: v for k, v in p.items() if k not in ("version", "lane", "seq")} for p in one["passes"]
    ]
    return {**one, "passes": passes}


def unscored(trajectory: Trajectory) -> Trajectory:
    passes = tuple(msgspec.structs.replace(one, scores={}) for one in trajectory.passes)
    return msgspec.structs.replace(trajectory, passes=passes)


def test_a_lane_that_was_told_live_shows_what_its_replay_shows():
    rng = np.random.default_rng(5)
    for policy in ("exact", "sticky"):
        one = unscored(simulate(rng, policy, block_size=2))
        log: list[dict[str, Any]] = []
        lane = LaneEvents(decode, log.append)
        told(one, lane)
        lane.finish(one)
        assert plain(shown(log)) == plain(shown(events(one, decode)))
        assert not any(event["type"] == "cut" for event in log)


def test_what_the_record_says_differently_is_told_again():
    one = unscored(worked_example())
    first, second = one.passes
    # The second pass was preempted after its first token: it is recorded as two.
    middle = second.start + 1
    cut = [
        msgspec.structs.replace(second, stop=middle, weight_versions=(), finish_reason="preempted"),
        msgspec.structs.replace(second, start=middle, weight_versions=(), reuse=()),
    ]
    record = msgspec.structs.replace(one, passes=(first, *cut))
    log: list[dict[str, Any]] = []
    lane = LaneEvents(decode, log.append)
    told(one, lane)
    lane.finish(record, ["something"])
    assert plain(shown(log)) == plain(shown(events(record, decode)))
    assert [event["start"] for event in log if event["type"] == "cut"] == [second.start]
    assert log[-1] == {
        "type": "finished",
        "finish": second.finish_reason,
        "problems": ["something"],
    }


def test_what_was_taken_back_and_a_pass_without_tokens_leave_nothing():
    one = unscored(worked_example())
    log: list[dict[str, Any]] = []
    lane = LaneEvents(decode, log.append)
    lane.begin(states(one, 0), one.fed_length(0), 0)
    lane.tokens([120, 121])
    lane.cut(0, "engine")
    told(one, lane)
    lane.begin(states(one, 1), one.fed_length(1), 0)
    lane.finish(one)
    assert plain(shown(log)) == plain(shown(events(one, decode)))


def test_scores_are_shown_where_the_requirement_is_not_known():
    one = worked_example()
    assert any(p.scores for p in one.passes)
    passes = shown(events(one, decode))["passes"]
    assert [p["scores"] for p in passes] == [p.scores for p in one.passes]
