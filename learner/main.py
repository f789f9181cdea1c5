"""The learner process: waits for actors, trains on what they send, publishes weights.

`run` returns the exit code: 0 where training reached its end or was told to stop, 1 where it
crashed (started again, it goes on from its last checkpoint), 2 where the configuration is wrong,
3 where the run must not go on. Its last line on stderr says why.

Threads: this one trains. The channel's thread answers the actors, so nobody looks dead during a
long step; the inbox's thread audits what came. They meet in `Stream`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from learner.config import LearnerConfig
from learner.stream import LearnerFailed

if TYPE_CHECKING:
    from learner.session import Session

GRACE = 4.0
"""Seconds between a signal and the end of the process, whatever it is doing."""


def run(config: LearnerConfig) -> int:
    """Train until `training.max_steps`, a signal, or a failure."""
    _environment(distributed=bool(config.deepspeed))
    session: Session | None = None
    over = threading.Event()
    code, last_words = 0, ""
    try:
        from learner.session import Session  # imports torch: only after the environment is set

        session = Session(config)
        _obey_signals(session, over)
        session.train()
    except LearnerFailed as error:
        code, last_words = 3, str(error)
    except ValueError as error:
        code, last_words = 2 if session is None else 1, str(error)
    except Exception as error:  # a bug, or a library's: its trace is for the log
        traceback.print_exc()
        code, last_words = 1, f"{type(error).__name__}: {error}"
    finally:
        if session is not None:
            session.close(failure=last_words)
        over.set()
    if last_words:
        print(f"learner: {' '.join(last_words.split())}", file=sys.stderr, flush=True)
    return code


def _environment(distributed: bool) -> None:
    """What libraries read when they are imported. What is set already stays."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not distributed:
        return
    # DeepSpeed trains under torchrun's variables, even alone.
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    if "DS_ACCELERATOR" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"


def _obey_signals(session: Session, over: threading.Event) -> None:
    def stop(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        session.stop(name)
        threading.Thread(target=_give_up, args=(session, over, 128 + number), daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _give_up(session: Session, over: threading.Event, code: int) -> None:
    """A library may be compiling, or a step be long: leave nothing behind, and go."""
    if not over.wait(GRACE):
        session.close(failure="a signal came while it could not be obeyed")
        os._exit(code)
