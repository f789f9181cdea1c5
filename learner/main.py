"""The learner process: waits for actors, trains on what they send, publishes weights.

`run` returns the exit code: 0 where training reached its end or was told to stop, 1 where it
crashed (restarted, it resumes from its last checkpoint), 2 where the configuration is wrong,
3 where the run must not continue. Its last line on stderr says why.

Threads: this one trains. The channel's thread answers the actors, so nobody looks dead during a
long step; the inbox's thread audits what came. They meet in `Stream`.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from learner.config import LearnerConfig
from learner.environment import set_environment
from learner.online.stream import LearnerFailed
from protocol.run.grace import end_within_grace

if TYPE_CHECKING:
    from learner.online.learner import Learner


def run(config: LearnerConfig) -> int:
    """Train until `training.max_steps`, a signal, or a failure."""
    set_environment(distributed=bool(config.deepspeed), given_threads=config.threads)
    learner: Learner | None = None
    over = threading.Event()
    code, last_words = 0, ""
    try:
        from learner.online.learner import (
            Learner,  # imports torch: only after the environment is set
        )

        learner = Learner(config)
        _obey_signals(learner, over)
        learner.train()
    except LearnerFailed as error:
        code, last_words = 3, str(error)
    except ValueError as error:
        code, last_words = 2 if learner is None else 1, str(error)
    except Exception as error:  # a bug, or a library's: its trace is for the log
        traceback.print_exc()
        code, last_words = 1, f"{type(error).__name__}: {error}"
    finally:
        if learner is not None:
            learner.close(failure=last_words)
        over.set()
    if last_words:
        print(f"learner: {' '.join(last_words.split())}", file=sys.stderr, flush=True)
    return code


def _obey_signals(learner: Learner, over: threading.Event) -> None:
    """End after the current step, or, where that takes too long, at once."""

    def close() -> None:
        learner.close(failure="a signal came while it could not be obeyed")

    def stop(number: int, _frame: object) -> None:
        learner.stop(signal.Signals(number).name)
        end_within_grace(128 + number, over, close)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGUSR1, stop)  # all that srun passes on
