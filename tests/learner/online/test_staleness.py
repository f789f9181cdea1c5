"""The staleness buffer: every trajectory ends in exactly one place."""

import random

import pytest

from learner.online.staleness import ARRIVED_STALE, WAITED_STALE, StalenessBuffer


def test_takes_in_order_and_only_whole_batches():
    buffer = StalenessBuffer[str](max_policy_lag=2)
    for name in "abc":
        assert buffer.offer(name, 0)
    assert buffer.take(4) is None
    assert buffer.take(2) == ["a", "b"]
    assert buffer.take(2) is None
    assert len(buffer) == 1


def test_bound_is_inclusive():
    buffer = StalenessBuffer[str](max_policy_lag=2)
    buffer.advance(5)
    assert buffer.offer("three behind", 2) is False
    assert buffer.offer("two behind", 3) is True
    assert buffer.dropped == {ARRIVED_STALE: 1}
    assert buffer.take(1) == ["two behind"]
    assert buffer.policy_lag_max == 2


def test_lag_zero_takes_only_the_newest_version():
    buffer = StalenessBuffer[int](max_policy_lag=0)
    buffer.offer(0, 0)
    assert buffer.advance(1) == [0]
    assert buffer.offer(1, 1)
    assert buffer.dropped == {WAITED_STALE: 1}


def test_publishing_drops_what_waited_too_long_and_keeps_the_order():
    buffer = StalenessBuffer[str](max_policy_lag=1)
    for name, oldest in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        buffer.offer(name, oldest)
    assert buffer.advance(1) == []
    assert buffer.advance(2) == ["a", "c"]
    assert buffer.take(2) == ["b", "d"]


def test_a_token_newer_than_the_last_publication_is_fine():
    buffer = StalenessBuffer[str](max_policy_lag=0)
    assert buffer.offer("ahead", 3)


def test_versions_only_grow():
    buffer = StalenessBuffer[str](max_policy_lag=1)
    buffer.advance(2)
    with pytest.raises(ValueError, match="only grow"):
        buffer.advance(1)


def test_nothing_is_lost_and_nothing_is_taken_twice():
    rng = random.Random(0)
    for _ in range(50):
        buffer = StalenessBuffer[int](max_policy_lag=rng.randrange(4))
        seen: list[int] = []
        for index in range(200):
            what = rng.random()
            if what < 0.6:
                buffer.offer(index, max(0, buffer.version - rng.randrange(5)))
            elif what < 0.8:
                buffer.advance(buffer.version + rng.randrange(2))
            else:
                seen += buffer.take(rng.randrange(1, 5)) or []
            assert buffer.offered == buffer.taken + sum(buffer.dropped.values()) + len(buffer)
        assert len(seen) == len(set(seen)) == buffer.taken
        assert buffer.policy_lag_max <= buffer.max_policy_lag


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_what_may_be_started_is_never_too_old_when_its_turn_comes(lag):
    """The loop, played in any order; with a lag, as long as none overtakes another by far."""
    draw = random.Random(lag)
    per_version, per_step = 6, 3
    buffer = StalenessBuffer[int](lag, per_version)
    running: list[int] = []
    serving = 0
    for _ in range(4000):
        kind = draw.randrange(4)
        if kind == 0 and len(running) + len(buffer) < buffer.room(serving):
            running.append(serving)
        elif kind == 1 and running:
            version = running.pop(0 if lag else draw.randrange(len(running)))
            assert buffer.offer(version, version)
        elif kind == 2:
            for version in buffer.take(per_step) or ():
                assert buffer.version - version <= lag
            if buffer.taken >= (buffer.version + 1) * per_version:
                assert not buffer.advance(buffer.version + 1), "nothing is started in vain"
        elif kind == 3:
            serving = buffer.version
    assert buffer.taken > 300
    assert not sum(buffer.dropped.values())


def test_without_lag_the_two_alternate():
    buffer = StalenessBuffer[int](0, per_version=4, first_version=7)
    assert buffer.room(-1) == 0, "no weights yet"
    assert buffer.room(7) == 4
    for item in range(4):
        buffer.offer(item, 7)
    assert buffer.take(4) == [0, 1, 2, 3]
    assert buffer.room(7) == 0, "until the next version is out"
    buffer.advance(8)
    assert buffer.room(7) == 0, "and serves"
    assert buffer.room(8) == 4


def test_after_a_restart_counting_goes_on_and_the_room_begins_anew():
    buffer = StalenessBuffer[int](0, per_version=4, first_version=9)
    buffer.restore({"taken": 100, "dropped_arrived_stale": 5, "policy_lag_max": 2})
    assert (buffer.taken, buffer.offered, buffer.policy_lag_max) == (100, 105, 2)
    assert buffer.room(9) == 4
