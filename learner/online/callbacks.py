"""When weights go out, and when training ends."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from learner.online.publisher import Publisher
from learner.online.stream import LearnerFailed, Stream


class PublishCallback(TrainerCallback):
    """Publishes at the start and every `every` steps.

    A version that found no free buffer is due at the next step, unless actors may start nothing
    more until it is out: then it waits. The last step, after which the weights must go out, is
    `max_steps` or the first one to end later than `max_seconds` after the first batch came.
    """

    def __init__(
        self,
        publisher: Publisher,
        stream: Stream,
        every: int,
        last_wait: float,
        max_seconds: float = math.inf,
        *,
        max_policy_lag: int = 4,
        seconds_before: float = 0.0,
    ) -> None:
        self._patience = every * max_policy_lag
        self._before = seconds_before
        self._due_since: int | None = None
        self._publisher = publisher
        self._stream = stream
        self._every = every
        self._last_wait = last_wait
        self._max_seconds = max_seconds
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Time spent training, from the first batch on, in this process and those before it."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The weights are those that training starts from, a checkpoint's where there is one."""
        if not self._publisher.publish(self._last_wait):
            raise LearnerFailed(
                f"the first weights could not be published: {self._publisher.obstacle}"
            )

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Its batch is here."""
        if self._began is None:
            self._began = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer moved."""
        step = state.global_step
        last = step >= state.max_steps or self.seconds >= self._max_seconds
        if self._due_since is None and (last or step % self._every == 0):
            self._due_since = step
        if self._stream.stopped is not None:
            control.should_training_stop = True
            return
        if self._due_since is None:
            return
        insist = last or step - self._due_since >= self._patience
        if self._publisher.publish(self._last_wait if insist else 0.0):
            self._due_since = None
            control.should_training_stop = control.should_training_stop or last
            control.should_save = control.should_save or (last and step < state.max_steps)
        elif insist:
            raise LearnerFailed(
                f"weights could not be published within {self._last_wait:g} s: "
                f"{self._publisher.obstacle}; see the actors' logs"
            )
