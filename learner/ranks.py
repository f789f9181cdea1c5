"""The ranks of one learner on this machine, started and watched by torchrun's agent.

The agent ends all of them when one fails; on several machines (`learner.meeting`), each has one
agent. Where the agent itself is killed, the kernel ends the ranks. A signal is a request, and goes
to rank 0 alone, which tells the others; only an agent that lost a rank sends SIGTERM to those that
are left. Run as a module, this file is one rank:

    RANK=0 WORLD_SIZE=2 ... python -m learner.ranks learner.online.rank CONFIG.json
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple, NoReturn

import psutil

from learner.environment import leave
from learner.meeting import PATIENCE, Meeting, Nodes
from protocol.run.grace import end_with_parent

LOGS: Final = "logs"
"""Folder of a run that holds `rank-N.log`: the output of each rank, but for what rank 0 writes to
stderr, which people see."""
_PARENT: Final = "DYNATOK_PARENT"
"""Variable that tells a rank the process id of its agent."""
_LOG_FOLDER: Final = "DYNATOK_RANK_LOGS"
"""Variable that tells a rank where its log goes."""
_PATIENCE: Final = 5
"""Seconds between the signal that ends a rank and SIGKILL."""
FINAL: Final = (2, 3)
"""Exit codes that say: do not start me again."""
_REQUESTS: Final = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGINT,  # SIGTERM is the agent's own word: another rank has died
    signal.SIGHUP: signal.SIGINT,
    signal.SIGQUIT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
}
"""What the agent is sent -> what rank 0 is sent for it."""


def log_of(run_dir: Path, rank: int) -> Path:
    """Where a rank writes."""
    return run_dir / LOGS / f"rank-{rank}.log"


class Ended(NamedTuple):
    """How the ranks ended."""

    failed: dict[int, int]
    """Rank -> exit code of those that failed; negative: the signal that killed it."""
    asked: signal.Signals | None
    """The signal that had asked them to end, if one had."""


ONE: Final = Nodes()


def run_ranks(
    ranks: int, entry: str, config: Path, run_dir: Path, where: Nodes = ONE, interface: str = ""
) -> Ended:
    """Have so many ranks call `main(CONFIG)` of the module `entry`, and wait for their end.

    `where`: other machines have as many, and all are ranks of one learner, rank 0 on node 0.
    The ranks get the environment of this process, and end with it. Raises SystemExit for a
    signal that comes before they are there, TimeoutError where the machines do not meet.
    """
    if where.index:
        # Node 0 may end first: what torch says of that on stderr would be the last word.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imports torch.
    from torch.distributed import DistStoreError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What the agent says about a failed rank is for its own developers; ours is one line.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    (run_dir / LOGS).mkdir(exist_ok=True)
    asked: list[signal.Signals] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number))
        here = _ranks()
        if 0 in here:
            with contextlib.suppress(psutil.Error):
                here[0].send_signal(_REQUESTS[signal.Signals(number)])
        elif not here and number != signal.SIGUSR1:
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, pass_on) for number in _REQUESTS}
    variables = {_PARENT: str(os.getpid()), _LOG_FOLDER: str(run_dir)}
    os.environ.update(variables)
    failed: dict[int, int] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="dynatok-ranks-") as scratch:
            meeting = Meeting(run_dir, where, interface)
            launch = LaunchConfig(
                min_nodes=where.count,
                max_nodes=where.count,
                nproc_per_node=ranks,
                run_id=run_dir.name,
                rdzv_backend="static",
                rdzv_endpoint=f"{meeting.host}:{meeting.port}",
                rdzv_configs={"rank": where.index, "timeout": int(PATIENCE)},
                local_addr=meeting.host,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                shutdown_timeout=_PATIENCE,
                signals_to_handle="",
            )
            elastic_launch(launch, sys.executable)("-m", "learner.ranks", entry, str(config))
    except ChildFailedError as error:
        failed = {rank: failure.exitcode for rank, failure in error.failures.items()}
    except DistStoreError as error:
        raise TimeoutError(
            f"the {where.count} nodes of the learner have not met: {error}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for name in variables:
            del os.environ[name]
    return Ended(failed, next((one for one in asked if one != signal.SIGUSR1), None))


def cause_of(failed: Mapping[int, int]) -> tuple[int, int]:
    """The rank, and its exit code, that the others have ended for: one that said that going on
    makes no sense, was killed, or crashed. SIGTERM is the agent's, once one has failed."""

    def order(one: tuple[int, int]) -> tuple[bool, bool, bool, int]:
        rank, code = one
        killed = code < 0 and code != -signal.SIGTERM
        return code not in FINAL, not killed, code == -signal.SIGTERM, rank

    return min(failed.items(), key=order)


def _ranks() -> dict[int, psutil.Process]:
    """Those of this agent that run, by number."""
    found = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "learner.ranks" in child.cmdline():
                found[int(child.environ()["RANK"])] = child
    return found


def _be_rank(entry: str, config: Path) -> int:
    """This process is a rank; its exit code."""
    end_with_parent(int(os.environ[_PARENT]))
    rank = int(os.environ["RANK"])
    if rank:
        # Rank 0 says when it is over. SIGTERM ends this one as if it were killed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:  # unwinds, so that a progress bar gives the terminal back
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with log_of(Path(os.environ[_LOG_FOLDER]), rank).open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        if rank:
            os.dup2(log.fileno(), sys.stderr.fileno())
    code: int = importlib.import_module(entry).main(config)  # imports torch
    leave()
    return code


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(_be_rank(sys.argv[1], Path(sys.argv[2])))
