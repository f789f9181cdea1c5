"""The learner finds its batches just in time, and as fresh as that allows."""

from __future__ import annotations

import heapq
import random
from collections import deque
from statistics import mean

import pytest

from learner.online.pace import WINDOW, Pace

PER_STEP = 16


def quiet(pace: Pace, left: int, flying: int = 20) -> None:
    """So many steps whose batches were there."""
    for _ in range(WINDOW):
        pace.took(left, flying, waited=0.0, busy=1.0)


def test_half_of_what_was_never_needed_is_taken_back() -> None:
    pace = Pace(PER_STEP)
    for left in (30, 12, 40, 12, 30, 30, 30):
        pace.took(left, 20, waited=0.0, busy=1.0)
    assert pace.room(500) == 500
    pace.took(30, 20, waited=0.01, busy=1.0)
    assert pace.room(500) == PER_STEP + 30 + 20 - 12 // 2
    assert pace.room(40) == 40, "staleness bounds it all the same"


def test_what_waits_in_vain_is_not_needed_but_a_batch_always_is() -> None:
    pace = Pace(PER_STEP)
    quiet(pace, left=8, flying=0)
    assert pace.room(500) == PER_STEP + 8 - 4
    quiet(pace, left=1, flying=0)
    assert pace.room(500) == PER_STEP + 8 - 4, "one is no surplus"
    pace = Pace(PER_STEP)
    quiet(pace, left=2, flying=0)
    quiet(pace, left=2, flying=-1)
    assert pace.room(500) == PER_STEP


def test_who_waits_lets_more_begin() -> None:
    pace = Pace(PER_STEP)
    quiet(pace, left=8)
    before = pace.room(500)
    pace.took(0, 20, waited=0.5, busy=1.0)
    assert pace.room(500) == before + PER_STEP // 2
    pace.waits(2.0)  # and while it waits, so that a response that hangs holds nobody up
    assert pace.room(500) == before + PER_STEP // 2 + 2 * PER_STEP
    pace.took(0, 20, waited=2.0, busy=1.0)
    assert pace.room(500) == before + PER_STEP // 2 + 2 * PER_STEP


def simulate(
    pace: Pace | None, sessions: int, most: int = 320, steps: int = 300
) -> tuple[float, float]:
    """The learner's idle share, and the mean age of what it takes, in steps, of the second half.

    A step takes one second, a response two to six; a step may take new ones from what waits.
    """
    draw = random.Random(1)
    now = since = waited = 0.0
    begun: list[tuple[float, float]] = []
    """(when it comes, when it began)."""
    waiting: deque[float] = deque()
    ages: list[float] = []
    busy_until, took, called = 0.0, 0, 0.0
    while took < steps:
        # What has come, what may begin, and whether a batch is there.
        while begun and begun[0][0] <= now:
            waiting.append(heapq.heappop(begun)[1])
        room = most if pace is None else pace.room(most)
        while len(begun) < sessions and len(begun) + len(waiting) < room:
            heapq.heappush(begun, (now + draw.uniform(2, 6), now))
        if now >= busy_until and len(waiting) >= PER_STEP:
            ages += [now - waiting.popleft() for _ in range(PER_STEP)]
            if pace is not None and took:
                flying = min(room - len(waiting), len(begun))
                pace.took(len(waiting), flying, now - called, 1.0)
            waited += now - called
            busy_until, took = now + draw.uniform(0.8, 1.2), took + 1
            called = busy_until
            if took == steps // 2:
                since, waited, ages = now, 0.0, []
        now += 0.02
    return waited / (now - since), mean(ages)


@pytest.mark.parametrize("sessions", [128, 256])
def test_fresher_for_nearly_no_waiting(sessions: int) -> None:
    """Actors that could write twice, or four times, what is trained on."""
    idle, age = simulate(None, sessions)
    paced_idle, paced_age = simulate(Pace(PER_STEP), sessions)
    assert idle < 0.01
    assert paced_idle < 0.05
    assert paced_age < 0.5 * age


def test_where_actors_are_slower_nothing_is_held_back() -> None:
    idle, age = simulate(None, sessions=32)
    paced_idle, paced_age = simulate(Pace(PER_STEP), sessions=32)
    assert idle > 0.4
    assert paced_idle == pytest.approx(idle, abs=0.02)
    assert paced_age == pytest.approx(age, abs=0.5)
