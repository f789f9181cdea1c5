"""What libraries are told before they start: the environment they read, and what not to compile."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.run.threads import threads

if TYPE_CHECKING:
    from transformers import TrainingArguments


def set_environment(distributed: bool, given_threads: int = 0, processes: int = 2) -> None:
    """What libraries read when they are imported. What is set already stays.

    `given_threads`: `learner.threads`; 0: `OMP_NUM_THREADS`, or an equal share of the cores where
    so many processes compute on this machine.
    """
    os.environ.update(threads(processes, given=given_threads))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not distributed:
        return
    # DeepSpeed trains under torchrun's variables, even alone.
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    # One process: its own store binds a free port, and nobody else has to know it.
    os.environ.setdefault("MASTER_PORT", "0")
    if "DS_ACCELERATOR" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"


def local_ranks() -> int:
    """Processes of the learner on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def report_to_one_run(run_dir: Path, name: str) -> None:
    """Have what `report_to` names write a run that is started again as one, not as a new one.

    What is set already stays. Those that go by `run_name` have it from the trainer's arguments.
    """
    given = {
        "TENSORBOARD_LOGGING_DIR": str(run_dir / "tensorboard" / "trainer"),
        "WANDB_RUN_ID": name,
        "WANDB_RESUME": "allow",
        "SWANLAB_RUN_ID": name,
        "SWANLAB_RESUME": "allow",
    }
    for variable, value in given.items():
        os.environ.setdefault(variable, value)


def join(arguments: TrainingArguments) -> None:
    """Have DeepSpeed know the ranks before a model is made: ZeRO-3 takes it apart as it is made.

    Where there is no accelerator, transformers joins the ranks without telling DeepSpeed.
    """
    _ = arguments.device  # joins them
    if arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed(
            dist_backend=arguments.ddp_backend, auto_mpi_discovery=False, verbose=False
        )


def leave() -> None:
    """Leave the ranks, if they were joined, while the interpreter is whole.

    gloo's threads may still hold tensors; at the interpreter's end they would abort it:
    https://github.com/pytorch/pytorch/pull/179291
    """
    from torch import distributed

    if distributed.is_initialized():
        with contextlib.suppress(Exception):  # another rank is gone
            distributed.destroy_process_group()


def compile_nothing() -> None:
    """On a CPU DeepSpeed would compile an operator for reductions between ranks of one machine.

    One rank has no use for it, and several reduce through gloo. Compiling takes half a minute and
    a compiler, and a process that is killed while it compiles leaves a lock behind that later
    ones wait for without end.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
