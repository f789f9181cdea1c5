"""Seconds of sessions, by hand."""

from __future__ import annotations

from actor.online.session_time import SessionTime


def test_seconds_of_all_sessions_those_that_go_on_included() -> None:
    now = 10.0
    spent = SessionTime(lambda: now)
    assert spent.seconds == 0
    with spent.one():
        now = 12.0
        assert spent.seconds == 2
        with spent.one():
            now = 15.0
            assert spent.seconds == 2 + 2 * 3
        now = 16.0
        assert spent.seconds == 2 + 6 + 1
    now = 20.0
    assert spent.seconds == 9
