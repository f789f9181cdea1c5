"""The stream between two threads: whole batches, deadlines, and one end."""

import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

import learner.online.stream as stream_module
from learner.online.stream import Batches, LearnerFailed, Stream


def test_a_batch_is_handed_over_when_it_is_whole(make):
    stream = Stream(max_policy_lag=1)
    released: list[int] = []

    def feed():
        for index in range(4):
            time.sleep(0.01)
            stream.offer(make(str(index)), partial(released.append, index))

    thread = threading.Thread(target=feed)
    thread.start()
    batch = stream.take(4, deadline=5)
    thread.join()
    assert batch is not None
    assert [one.trajectory_id for one in batch] == ["0", "1", "2", "3"]
    assert released == [0, 1, 2, 3]


def test_what_publishing_makes_stale_gives_its_credit_back(make):
    stream, released = Stream(max_policy_lag=0), []
    assert stream.offer(make("old", version=0), lambda: released.append("old"))
    assert len(stream.advance(1)) == 1
    assert released == ["old"]
    assert not stream.offer(make("older", version=0), lambda: released.append("older"))
    assert released == ["old"], "a refused trajectory stays with the caller"
    assert stream.counts()["dropped_stale"] == 2


def test_waiting_ends_at_the_deadline_with_the_numbers(make):
    stream = Stream(max_policy_lag=1)
    stream.offer(make())
    with pytest.raises(LearnerFailed, match=r"no batch of 2 .* within 0\.05 s \(1 waiting"):
        stream.take(2, deadline=0.05)


def test_the_deadline_of_a_batch_counts_from_the_first_trajectory_of_all(make):
    stream = Stream(max_policy_lag=1)
    threading.Timer(0.3, lambda: stream.offer(make("late"))).start()
    batch = stream.take(1, deadline=0.05, start_deadline=30)  # an engine started meanwhile
    assert batch is not None
    with pytest.raises(LearnerFailed, match=r"within 0\.05 s .* learner\.batch_deadline"):
        stream.take(1, deadline=0.05, start_deadline=30)


def test_a_batch_may_take_its_whole_time_behind_the_first_trajectory(make):
    stream = Stream(max_policy_lag=1)
    timers = [threading.Timer(at, lambda: stream.offer(make())) for at in (0.3, 0.5)]
    for timer in timers:
        timer.start()
    assert stream.take(2, deadline=20, start_deadline=30) is not None
    with pytest.raises(LearnerFailed, match=r"within 0\.05 s .* learner\.start_deadline"):
        Stream(max_policy_lag=1).take(1, deadline=20, start_deadline=0.05)


@pytest.mark.parametrize("end", ["stop", "fail"])
def test_who_waits_is_woken(end):
    stream = Stream(max_policy_lag=1)
    threading.Timer(0.05, lambda: getattr(stream, end)("enough")).start()
    began = time.monotonic()
    if end == "stop":
        assert stream.take(1, deadline=30) is None
        assert stream.stopped == "enough"
    else:
        with pytest.raises(LearnerFailed, match="enough"):
            stream.take(1, deadline=30)
    assert time.monotonic() - began < 5


def test_the_first_reason_stays():
    stream = Stream(max_policy_lag=1)
    stream.fail("first")
    stream.fail("second")
    assert stream.failure == "first"
    stopped = Stream(max_policy_lag=1)
    stopped.stop("told to")
    stopped.fail("too late")
    assert stopped.failure is None


def test_batches_are_looked_at_before_they_are_given_out(make):
    stream, looked = Stream(max_policy_lag=1), []
    for index in range(4):
        stream.offer(make(str(index)))
    batches = Batches(stream, 2, deadline=5, on_batch=lambda batch: looked.append(len(batch)))
    first = batches.take()
    assert first is not None
    assert [one.trajectory_id for one in first] == ["0", "1"]
    assert looked == [2]
    assert len(batches.take() or ()) == 2
    assert looked == [2, 2]
    stream.stop("done")
    assert batches.take() is None
    assert looked == [2, 2]


def test_room_follows_how_fast_batches_are_taken(make, monkeypatch) -> None:
    """What was never needed is not begun again; where trajectories are to meet, all may wait."""
    now = 0.0
    monkeypatch.setattr(stream_module, "time", SimpleNamespace(monotonic=lambda: now))
    for group, paced in ((None, True), (lambda one: one.trajectory_id, False)):
        stream = Stream(max_policy_lag=9, per_version=8, group=group, per_step=2)
        stream.flying = lambda: 3
        for number in range(28):
            stream.offer(make(str(number)))
        for _ in range(9):
            assert stream.take(2, deadline=5) is not None
            now += 1.0
        # At the ninth batch 10 were left, of which half were never needed.
        assert stream.room(0) == (2 + 10 + 3 - 5 if paced else (9 + 1) * 8 - 18)
