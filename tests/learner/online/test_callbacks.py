"""When weights go out, and what ends the training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from learner.online.callbacks import DecideCallback, FollowCallback
from learner.online.group import Fate, Group
from learner.online.publisher import Publisher
from learner.online.stream import LearnerFailed, Stream


class FakePublisher:
    """Publishes unless told that every buffer is being read."""

    def __init__(self) -> None:
        self.full = False
        self.fills_up = False
        """Whether there turns out to be no room while it is written."""
        self.published = 0
        self.obstacle = "version 3 by actor-1"

    def ready(self, wait: float = 0.0) -> bool:
        return not self.full

    def publish(self) -> bool:
        assert not self.full
        self.published += not self.fills_up
        return not self.fills_up


def steps(callback: DecideCallback, numbers: range, max_steps: int = 100) -> TrainerControl:
    """Runs these steps, or as many as the callback allows."""
    arguments, control = cast(TrainingArguments, None), TrainerControl()
    for step in numbers:
        state = TrainerState(global_step=step - 1, max_steps=max_steps)
        callback.on_step_begin(arguments, state, control)
        state.global_step = step
        callback.on_step_end(arguments, state, control)
        if control.should_training_stop:
            break
    return control


def made(publisher: FakePublisher, stream: Stream | None = None, **options: Any) -> DecideCallback:
    return DecideCallback(cast(Publisher, publisher), stream or Stream(4), 2, 0.0, **options)


def test_every_second_step_and_a_full_ring_is_tried_again_at_the_next() -> None:
    publisher = FakePublisher()
    callback = made(publisher)
    steps(callback, range(1, 5))
    assert publisher.published == 2
    publisher.full = True
    steps(callback, range(5, 7))
    publisher.full = False
    steps(callback, range(7, 8))
    assert publisher.published == 3


def test_a_disk_that_fills_up_meanwhile_is_tried_again_and_ends_the_last_step() -> None:
    publisher = FakePublisher()
    publisher.fills_up = True
    callback = made(publisher)
    steps(callback, range(1, 4))
    publisher.fills_up = False
    steps(callback, range(4, 5))
    assert publisher.published == 1
    publisher.fills_up = True
    with pytest.raises(LearnerFailed, match="the last weights could not be published: version 3"):
        steps(callback, range(5, 7), max_steps=6)


def test_time_ends_the_training_with_weights_published() -> None:
    publisher = FakePublisher()
    control = steps(made(publisher, max_seconds=1e-9), range(1, 9))
    assert control.should_training_stop
    assert publisher.published == 1


def test_final_weights_that_cannot_go_out_fail_the_run() -> None:
    publisher = FakePublisher()
    publisher.full = True
    with pytest.raises(LearnerFailed, match=r"weights could not be published .* by actor-1"):
        steps(made(publisher), range(1, 4), max_steps=3)


def test_a_checkpoint_is_written_when_it_is_due() -> None:
    due = False
    callback = made(FakePublisher(), save_due=lambda: due)
    assert not steps(callback, range(1, 2)).should_save
    due = True
    assert steps(callback, range(2, 3)).should_save


@pytest.mark.parametrize("keeps", [True, False])
def test_a_stream_that_was_stopped_ends_the_training_with_a_checkpoint(keeps: bool) -> None:
    stream, publisher = Stream(4), FakePublisher()
    callback = made(publisher, stream, save_at_stop=keeps)
    assert not steps(callback, range(1, 2)).should_training_stop
    stream.stop("SIGTERM")
    control = steps(callback, range(2, 9))
    assert control.should_training_stop
    assert control.should_save is keeps
    assert publisher.published == 0


def test_other_ranks_do_what_the_first_one_says() -> None:
    told: list[Fate] = []
    stream = Stream(4)
    callback = made(FakePublisher(), stream, tell=told.append, save_due=lambda: len(told) == 2)
    steps(callback, range(1, 4))
    stream.stop("SIGTERM")
    steps(callback, range(4, 5))
    assert told == [
        Fate(),
        Fate(publish=True),
        Fate(save=True),
        Fate(save=True, stop=True),
    ]
    group = cast(Group, SimpleNamespace(hear=lambda kind: told.pop(0)))
    arguments, state = cast(TrainingArguments, None), TrainerState()
    published: list[bool] = []
    follower = FollowCallback(group, lambda: published.append(True))
    said = []
    while told:
        control = TrainerControl()
        follower.on_step_end(arguments, state, control)
        said.append((len(published), control.should_save, control.should_training_stop))
    assert said == [(0, False, False), (1, False, False), (1, True, False), (1, True, True)]
