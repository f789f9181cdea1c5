"""What becomes of a step: rank 0 decides, tells the others, and all do it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from learner.online.group import Fate, Group
from learner.online.publisher import Publisher
from learner.online.stream import LearnerFailed, Stream


class DecideCallback(TrainerCallback):
    """Rank 0: publishes at the start and every `every` steps, saves where that is due, and stops.

    A version that found no free buffer is due at the next step, unless actors may start nothing
    more until it is out: then it waits. The last step, after which the weights must go out, is
    `max_steps` or the first one to end later than `max_seconds` after the first batch came. A
    stream that was stopped ends the training after this step, with a checkpoint.
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
        tell: Callable[[Fate], None] = lambda fate: None,
        save_due: Callable[[], bool] = lambda: False,
        save_at_stop: bool = True,
    ) -> None:
        """`tell`: the other ranks. `save_due`: whether a checkpoint is due now, whatever
        `save_steps` says. `save_at_stop`: whether one is written where training is stopped."""
        self._patience = every * max_policy_lag
        self._before = seconds_before
        self._due_since: int | None = None
        self._publisher = publisher
        self._stream = stream
        self._every = every
        self._last_wait = last_wait
        self._max_seconds = max_seconds
        self._tell = tell
        self._save_due = save_due
        self._save_at_stop = save_at_stop
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
        if not self._publisher.ready(self._last_wait):
            raise LearnerFailed(
                f"the first weights could not be published: {self._publisher.obstacle}"
            )
        self._tell(Fate(publish=True))
        if not self._publisher.publish():
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
        fate = self._fate(state, control)
        self._tell(fate)
        obey(fate, control)
        if fate.publish and not self._publisher.publish():  # a disk that filled up meanwhile
            if fate.stop:
                raise LearnerFailed(
                    f"the last weights could not be published: {self._publisher.obstacle}"
                )
            self._due_since = state.global_step

    def _fate(self, state: TrainerState, control: TrainerControl) -> Fate:
        step = state.global_step
        last = step >= state.max_steps or self.seconds >= self._max_seconds
        if self._due_since is None and (last or step % self._every == 0):
            self._due_since = step
        save = self._save_due() or control.should_save
        if self._stream.stopped is not None:
            return Fate(save=save or self._save_at_stop, stop=True)
        if self._due_since is None:
            return Fate(save=save, stop=control.should_training_stop)
        insist = last or step - self._due_since >= self._patience
        if self._publisher.ready(self._last_wait if insist else 0.0):
            self._due_since = None
            return Fate(
                publish=True,
                save=save or (last and step < state.max_steps),
                stop=last or control.should_training_stop,
            )
        if insist:
            raise LearnerFailed(
                f"weights could not be published within {self._last_wait:g} s: "
                f"{self._publisher.obstacle}; see the actors' logs"
            )
        return Fate(save=save, stop=control.should_training_stop)


class FollowCallback(TrainerCallback):
    """Other ranks: do what rank 0 says."""

    def __init__(self, group: Group, publish: Callable[[], None]) -> None:
        """`publish`: this rank's part in gathering the weights."""
        self._group = group
        self._publish = publish

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The first weights."""
        if self._group.hear(Fate).publish:
            self._publish()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer moved."""
        fate = self._group.hear(Fate)
        obey(fate, control)
        if fate.publish:
            self._publish()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """This rank's files are written; rank 0 waits for that."""
        self._group.meet()


def obey(fate: Fate, control: TrainerControl) -> None:
    """What the trainer is to do after this step."""
    control.should_save = fate.save
    control.should_training_stop = fate.stop
