"""A rank above 0: trains on the rows that rank 0 hands it, and does what rank 0 says.

It has no socket, no journal and no say. What goes wrong here is printed at once; the process ends
a little later, so that the first word on why a group ended is rank 0's where rank 0 has failed.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import torch
from transformers import set_seed

from dynatok_online.rows.row import empty_row
from learner.config import LearnerConfig
from learner.environment import compile_nothing, local_ranks, set_environment
from learner.log import say
from learner.online.before_step import BeforeStep
from learner.online.callbacks import FollowCallback
from learner.online.canary import canary, canary_texts
from learner.online.gather import to_publish
from learner.online.group import Begin, Goodbye, Group, Score
from learner.online.publisher import take_all
from learner.online.scorer import Scorer
from learner.online.steps import Receiver
from learner.online.trainer import OnlineTrainer
from learner.saving import save_trained
from learner.training import message_deadline, stream_arguments
from protocol.run.threads import number_of_threads

_LAST_WORD = 10.0
"""Seconds between a failure and the end of the process."""


def follow(config: LearnerConfig) -> int:
    """Train to the end; the exit code."""
    set_environment(bool(config.deepspeed), config.threads, processes=1 + local_ranks())
    try:
        _train(config)
    except ValueError as error:
        print(" ".join(str(error).split()), flush=True)
        return 2
    except Exception:  # a bug, a library's, or rank 0 is gone
        traceback.print_exc()
        time.sleep(_LAST_WORD)
        return 1
    return 0


def _train(config: LearnerConfig) -> None:
    torch.set_num_threads(number_of_threads(1 + local_ranks(), given=config.threads))
    set_seed(config.seed)
    if config.deepspeed:
        compile_nothing()
    run_dir = Path(config.run_dir)
    arguments = stream_arguments(config, run_dir)
    trainer = OnlineTrainer(config, arguments)
    group = Group(message_deadline(config, arguments))
    trainer.steps = Receiver(group)
    scorer = Scorer(lambda: trainer.model_wrapped, arguments.device, arguments.max_row_tokens)
    texts = canary_texts(
        trainer.model.config.vocab_size, config.canary_texts, config.canary_tokens, config.seed
    )
    sent = to_publish(trainer.model, getattr(torch, config.weight_dtype), config.weight_sync)
    due = False

    def publish() -> None:
        nonlocal due
        canary(scorer, texts, config.canary_tolerance)
        take_all(trainer.published_weights(sent))
        due = config.logprob_gap_trajectories > 0

    def compare() -> None:
        nonlocal due
        if due:
            due = False
            for _ in range(group.hear(Score).rows):
                scorer.row(empty_row())

    trainer.add_callback(FollowCallback(group, publish))
    trainer.add_callback(BeforeStep(compare, lambda: trainer.model_wrapped))
    begin = group.hear(Begin)
    if begin.train:
        trainer.train(resume_from_checkpoint=begin.checkpoint or None)
    else:
        trainer.load(Path(begin.checkpoint))
        publish()
    if group.hear(Goodbye).finished:
        save_trained(trainer, run_dir, first=False)
    say(f"rank {group.rank} is done after {trainer.state.global_step} steps")
