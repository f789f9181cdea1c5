"""The ranks of `dynatok train` on this machine, started and watched by torchrun's agent.

The agent holds the port at which the ranks find each other from the moment it is bound, ends all
of them when one fails, and passes signals on. Where the agent itself is killed, the kernel ends
the ranks. Run as a module, this file is one rank:

    RANK=0 WORLD_SIZE=2 ... python -m learner.offline.ranks RUN_DIR
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final, NoReturn

from protocol.run.grace import end_with_parent

LOGS: Final = "logs"
"""Folder of a run that holds `rank-N.log`: the output of each rank, but for what rank 0 writes to
stderr, which people see."""
_PARENT: Final = "DYNATOK_PARENT"
"""Variable that tells a rank the process id of its agent."""
_PATIENCE: Final = 5
"""Seconds between the signal that ends a rank and SIGKILL."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def log_of(run_dir: Path, rank: int) -> Path:
    """Where a rank writes."""
    return run_dir / LOGS / f"rank-{rank}.log"


def run_ranks(ranks: int, run_dir: Path) -> dict[int, int]:
    """Train on `RUN_DIR/train.json` with so many ranks; rank -> exit code of those that failed.

    Empty: all went well. Negative: the signal that killed it. The ranks get the environment of
    this process. Raises KeyboardInterrupt for SIGINT, SystemExit for other signals: the ranks are
    gone then, too.
    """
    # Imports torch.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What the agent says about a failed rank is for its own developers; ours is one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    os.environ[_PARENT] = str(os.getpid())
    try:
        with tempfile.TemporaryDirectory(prefix="dynatok-ranks-") as scratch:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=ranks,
                run_id=run_dir.name,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                shutdown_timeout=_PATIENCE,
            )
            elastic_launch(config, sys.executable)("-m", "learner.offline.ranks", str(run_dir))
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        del os.environ[_PARENT]
    return {}


def _be_rank(run_dir: Path) -> int:
    """This process is a rank; its exit code."""
    end_with_parent(int(os.environ[_PARENT]))
    for number in _SIGNALS:  # unwinds, so that a progress bar gives the terminal back
        signal.signal(number, _leave)
    rank = int(os.environ["RANK"])
    with log_of(run_dir, rank).open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        if rank:
            os.dup2(log.fileno(), sys.stderr.fileno())
    from learner.offline.train import main  # imports torch

    return main(run_dir)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(_be_rank(Path(sys.argv[1])))
