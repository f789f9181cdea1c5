"""The numbers of steps: every one is noticed, and seconds are seconds of one step."""

from __future__ import annotations

from typing import Any, cast

from transformers import TrainerControl, TrainerState, TrainingArguments

from learner.step_log import StepLog


def test_with_every_second_step_logged_all_are_counted_and_seconds_are_of_one() -> None:
    stages = {"publish": 0.0}
    written: list[tuple[int, dict[str, float]]] = []
    reached: list[int] = []

    def write(step: int, numbers: dict[str, float]) -> None:
        written.append((step, numbers))

    log = StepLog(lambda: dict(stages), write, reached.append)
    arguments: Any = cast(TrainingArguments, None)
    control = TrainerControl()
    log.on_train_begin(arguments, TrainerState(global_step=10), control)
    for step in range(11, 16):
        stages["publish"] += 3.0
        log.on_step_end(arguments, TrainerState(global_step=step), control)
        if step % 2 == 0:
            log.on_log(arguments, TrainerState(global_step=step), control, {"loss": 1.0})
    log.on_log(arguments, TrainerState(global_step=15), control, {"train_runtime": 1.0})
    assert reached == [11, 12, 13, 14, 15]
    assert [step for step, _ in written] == [12, 14]
    assert [numbers["seconds_publish"] for _, numbers in written] == [3.0, 3.0]
