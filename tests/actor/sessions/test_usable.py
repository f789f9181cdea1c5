"""What is not trained on is counted, and too much of it is an error."""

from __future__ import annotations

import asyncio

import pytest

from actor.sessions.live_session import Finished
from actor.sessions.serving import Serving
from actor.sessions.usable import IN_A_ROW, UNAUDITED_IN_A_ROW, Usable
from tests.actor.fake import FakeEngine
from tests.actor.sessions.test_live_session import B, make, task


def finished(*, lie: bool = False, lost: bool = False, room: int = 1000) -> Finished:
    engine = FakeEngine(max_model_len=room)
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    if lie:
        engine.cache_log.lies["run/2"] = None
    if lost:
        engine.cache_log.lost.add("run/2")
    return asyncio.run(make(engine, task((5, B)), serving=serving).run())


def test_what_the_engine_contradicts_is_dropped_and_counted() -> None:
    usable = Usable()
    assert usable.take(finished())
    assert not usable.take(finished(lie=True))
    assert not usable.take(finished(room=5))
    assert dict(usable.dropped) == {"contradicted": 1, "empty": 1}
    assert ["did not come" in one for one in usable.problems] == [True]


def test_too_many_in_a_row_are_an_error() -> None:
    usable, good, bad = Usable(), finished(), finished(lie=True)
    for _ in range(IN_A_ROW - 1):
        usable.take(bad)
    assert usable.take(good)
    for _ in range(IN_A_ROW - 1):
        usable.take(bad)
    with pytest.raises(ValueError, match=r"100 tasks in a row .* did not come"):
        usable.take(bad)


def test_lost_events_cost_their_responses_and_end_nothing() -> None:
    one = finished(lost=True)
    assert "batches of cache events are lost" in one.unaudited
    assert one.problems == ()
    assert one.counts.audit_mismatches == 0
    usable = Usable()
    for _ in range(IN_A_ROW + 1):
        assert not usable.take(one)
    assert dict(usable.dropped) == {"unaudited": IN_A_ROW + 1}
    assert usable.take(finished())
    for _ in range(UNAUDITED_IN_A_ROW - 1):
        usable.take(one)
    with pytest.raises(ValueError, match=r"could not be audited: .* are lost"):
        usable.take(one)
