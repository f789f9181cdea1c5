"""When weights go out, and what ends the training."""

from __future__ import annotations

from typing import Any, cast

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from learner.online.callbacks import PublishCallback
from learner.online.publisher import Publisher
from learner.online.stream import LearnerFailed, Stream


class FakePublisher:
    """Publishes unless told that every buffer is being read."""

    def __init__(self) -> None:
        self.full = False
        self.published = 0
        self.obstacle = "version 3 by actor-1"

    def publish(self, wait: float = 0.0) -> bool:
        self.published += not self.full
        return not self.full


def steps(callback: PublishCallback, numbers: range, max_steps: int = 100) -> TrainerControl:
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


def made(publisher: FakePublisher, **options: Any) -> PublishCallback:
    return PublishCallback(cast(Publisher, publisher), Stream(4), 2, 0.0, **options)


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
