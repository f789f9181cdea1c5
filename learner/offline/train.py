"""One rank of `dynatok train`: the same trainer and loss as online, on data that lies still.

`learner.ranks` starts the ranks, with torchrun's variables, on `RUN_DIR/train.json`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from transformers import PrinterCallback, set_seed

from dynatok_online import tiny
from dynatok_online.attention import check_turning
from dynatok_online.objectives.written import objective_of
from dynatok_online.prompt import Encoder, chat_of
from dynatok_online.rows.plan import needed_tokens
from dynatok_online.tasks.files import Chat
from dynatok_online.tasks.gold import load_training_data
from dynatok_online.training.config import DynamicSFTConfig
from dynatok_online.training.trainer import DynamicSFTTrainer
from dynatok_online.trajectory import Trajectory
from learner.environment import compile_nothing, join, report_to_one_run
from learner.offline.config import DataConfig, TrainConfig
from learner.offline.stop import StopCallback
from learner.online.adapters import check_servable
from learner.online.checkpoint import CheckpointCallback, StreamState, latest
from learner.saving import MODEL, save_trained
from learner.step_log import StepLog, report_last
from learner.training import CHECKPOINTS, lora_arguments, reachable, training_arguments
from protocol.run.json_files import write_json
from protocol.run.metrics import Metrics
from protocol.run.progress import progress_bar
from protocol.wire.messages import Offsets

CONFIG = "train.json"
RESULT = "result.json"


def main(path: Path) -> int:
    """Train as `RUN_DIR/train.json` says, save the model, write the result; the exit code."""
    run_dir = path.parent
    config = msgspec.json.decode(path.read_bytes(), type=TrainConfig)
    first = os.environ.get("RANK", "0") == "0"
    try:
        result = train(config, run_dir, first)
    except ValueError as error:  # the last line of its log: who started the ranks shows one
        print(" ".join(str(error).split()), flush=True)
        return 2
    if first and result is not None:
        write_json(run_dir / RESULT, result)
    return 0


def train(config: TrainConfig, run_dir: Path, first: bool) -> dict[str, Any] | None:
    """The numbers of the run; None: a signal ended it, with a checkpoint.

    Raises ValueError for what cannot be trained on.
    """
    if config.deepspeed:
        compile_nothing()
    set_seed(config.seed)
    model = tiny.resolve(config.model)
    bad: list[str] = []
    judged = objective_of(config.objective).hindsight is not None
    data = fitting(read_data(config, model, bad, judged=judged), config.training, bad)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = math.ceil(config.epochs * len(data) / config.trajectories_per_step)
    defaults = {"max_steps": steps, "run_name": run_dir.name, **reachable()}
    report_to_one_run(run_dir, run_dir.name)
    arguments = training_arguments(config, run_dir, world_size=world, where="", defaults=defaults)
    join(arguments)
    trainer = DynamicSFTTrainer(model, arguments, data, **lora_arguments(config.lora, ""))
    check_servable(trainer.model, "lora")
    moved = any(one.shifts is not msgspec.UNSET for each in data for one in each.passes)
    if moved and arguments.strategy == "packed":
        check_turning(trainer.model)
    trainer.remove_callback(PrinterCallback)
    stop = StopCallback(trainer.accelerator, first)
    trainer.add_callback(stop)
    meet = trainer.accelerator.wait_for_everyone
    trainer.add_callback(
        CheckpointCallback(partial(_state, world), lambda state: None, meet, first=first)
    )
    checkpoint = latest(run_dir / CHECKPOINTS)  # who resumes a run has removed broken ones
    metrics = Metrics(run_dir, "learner") if first else None
    with progress_bar("train", arguments.max_steps, shown=first) as bar:

        def write(step: int, numbers: dict[str, float]) -> None:
            if metrics is not None:
                metrics.log(step, **{k: v for k, v in numbers.items() if k != "epoch"})
                bar.move(step, f"loss {numbers['loss']:.3f}")

        trainer.add_callback(StepLog(lambda: dict(trainer.timings), write))
        report_last(trainer)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint.path))
    if stop.stopped:
        return None
    save_trained(trainer, run_dir, first)
    if metrics is not None:
        metrics.close()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {
        "run_dir": str(run_dir),
        "model": str(run_dir / MODEL),
        "ranks": world,
        "steps": trainer.state.global_step,
        "trajectories": len(data),
        "bad_rows": len(bad),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "seconds": round(trainer.timings["forward_backward"], 1),
    }


def _state(ranks: int, step: int) -> StreamState:
    """What a checkpoint says of itself. Data that lies still is skipped by the trainer."""
    return StreamState(step=step, consumed=Offsets(), tasks={}, ranks=ranks)


def fitting(data: list[Trajectory], training: dict[str, Any], bad: list[str]) -> list[Trajectory]:
    """The trajectories that rows can hold; the others are counted, and said."""
    budget = training.get("max_row_tokens", DynamicSFTConfig.max_row_tokens)
    strategy = training.get("strategy", DynamicSFTConfig.strategy)
    kept, left_out = [], []
    for one in data:
        needed = needed_tokens(one, strategy)
        if needed <= budget:
            kept.append(one)
        else:
            left_out.append(f"{one.trajectory_id} needs a row of {needed} tokens")
    bad += left_out
    advice = f"max_row_tokens is {budget}: raise it in 'training'"
    if not kept:
        raise ValueError(f"every trajectory is too long; {left_out[0]}, and {advice}")
    if left_out and os.environ.get("RANK", "0") == "0":
        print(
            f"dynatok: left out {len(left_out)} trajectories that are too long; the first, "
            f"{left_out[0]}, and {advice}",
            file=sys.stderr,
        )
    return kept


def read_data(
    config: DataConfig, model: str, bad: list[str], *, judged: bool = False
) -> list[Trajectory]:
    """The trajectories to train on; what was left out is appended to `bad`. `judged`: gold says
    what earlier text is worth under later states."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def chat() -> Chat:
        return chat_of(
            tokenizer,
            config.model,
            config.placement,
            config.system_prompt,
            config.chat_template_kwargs,
        )

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    data = load_training_data(
        config.data,
        encode=Encoder.of(tokenizer),
        chat=chat,
        reuse=config.reuse,
        placement=config.placement,
        block_size=config.block_size,
        seed=config.seed,
        on_bad=bad.append if config.skip_bad else None,
        judge=decode if judged else None,
    )
    data = data[: config.limit or None]
    if not data:
        raise ValueError(f"data: {config.data} holds no trajectory")
    if bad and os.environ.get("RANK", "0") == "0":
        print(f"dynatok: left out {len(bad)} rows; the first: {bad[0]}", file=sys.stderr)
    return data
