"""What happens between two optimizer steps: weights go out, numbers are written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from learner.publisher import Publisher
from learner.stream import LearnerFailed, Stream


class PublishCallback(TrainerCallback):
    """Publishes every `every` steps; a version that found no free buffer is due at the next.

    The last step, after which the weights must go out, is `max_steps` or the first one to end
    later than `max_seconds` after the first batch came.
    """

    def __init__(
        self,
        publisher: Publisher,
        stream: Stream,
        every: int,
        last_wait: float,
        max_seconds: float = math.inf,
    ) -> None:
        self._publisher = publisher
        self._stream = stream
        self._every = every
        self._last_wait = last_wait
        self._max_seconds = max_seconds
        self._began: float | None = None
        self._due = False

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
        assert self._began is not None, "a step ends after it began"
        spent = time.monotonic() - self._began
        last = state.global_step >= state.max_steps or spent >= self._max_seconds
        self._due = self._due or last or state.global_step % self._every == 0
        if self._stream.stopped is not None:
            control.should_training_stop = True
        elif self._due and self._publisher.publish(self._last_wait if last else 0.0):
            self._due = False
            control.should_training_stop = control.should_training_stop or last
        elif last:
            raise LearnerFailed(
                f"the final weights could not be published within {self._last_wait:g} s: every "
                "buffer is still being read; see the actor's log"
            )


class StepLog(TrainerCallback):
    """Hands the numbers of every step to `write`, with the seconds that each stage took."""

    def __init__(
        self,
        stages: Callable[[], dict[str, float]],
        write: Callable[[int, dict[str, float]], None],
    ) -> None:
        self._stages = stages
        self._write = write
        self._before: dict[str, float] = {}
        self._at = time.perf_counter()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The clock starts when training does."""
        self._before, self._at = self._stages(), time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """`logs` is what the trainer logged; the summary after the last step is left out."""
        if not logs or "loss" not in logs:
            return
        now, stages = time.perf_counter(), self._stages()
        seconds = {
            f"seconds_{name}": value - self._before.get(name, 0.0) for name, value in stages.items()
        }
        seconds["seconds_step"] = now - self._at
        self._before, self._at = stages, now
        self._write(state.global_step, {**logs, **seconds})
