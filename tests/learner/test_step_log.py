"""The numbers of steps: every one is noticed, and seconds are seconds of one step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from learner.step_log import StepLog, report_last


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


def test_what_is_told_of_a_step_reaches_what_report_to_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order callbacks were added in."""
    from transformers import Trainer

    from learner.environment import report_to_one_run

    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    report_to_one_run(tmp_path, "run-7")
    assert (os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"]) == ("run-7", "allow")
    for step in (1, 2):  # of a run that is started again
        arguments = TrainingArguments(str(tmp_path), report_to="tensorboard", use_cpu=True)
        trainer = Trainer(torch.nn.Linear(1, 1), arguments)
        trainer.add_callback(StepLog(dict, lambda step, numbers: {**numbers, "idle_share": 0.25}))
        report_last(trainer)
        trainer.state.global_step = step
        trainer.state.is_world_process_zero = True
        handler = trainer.callback_handler
        handler.on_train_begin(arguments, trainer.state, trainer.control)
        handler.on_log(arguments, trainer.state, trainer.control, {"loss": 0.5})
        handler.on_train_end(arguments, trainer.state, trainer.control)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "trainer")).Reload()
    # Files of one second are read in the order of their names, which end in a number: 10 before 9.
    assert sorted(one.step for one in found.Scalars("train/idle_share")) == [1, 2]
    assert [one.value for one in found.Scalars("train/idle_share")] == [0.25, 0.25]
