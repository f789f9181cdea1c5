"""Where the ranks of one learner find each other, on one machine or on several.

Each machine has an agent (`learner.ranks`). The one of node 0 binds a port of its own choice for
torch's store, at which all meet, and says which in `RUN/ranks.json`; agents of other nodes, which
were started together with it, wait for that. What ranks tell each other goes over torch's own
connections, unencrypted, as under torchrun.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from protocol.run.endpoint import local_host
from protocol.run.json_files import read_json, write_json

if TYPE_CHECKING:
    from torch.distributed import TCPStore

FILE: Final = "ranks.json"
PATIENCE: Final = 300.0
"""Seconds that the agents of a learner wait for each other."""
_LAST_WORD: Final = 30.0
"""Seconds that another node's agent waits for what became of rank 0."""


class Nodes(msgspec.Struct, frozen=True):
    """The machines that one learner was started on together, and which of them this is."""

    count: int = 1
    index: int = 0
    start: str = ""
    """Name of this start, on all of them: what an earlier one has written is not read."""


def nodes(environment: Mapping[str, str] = os.environ) -> Nodes:
    """As srun says it; outside of its steps: this machine alone."""
    step = environment.get("SLURM_STEP_ID")
    count = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    if step is None or count == 1:
        return Nodes()
    job, restart = (environment.get(f"SLURM_{one}", "0") for one in ("JOB_ID", "RESTART_COUNT"))
    return Nodes(count, int(environment["SLURM_NODEID"]), f"{job}.{restart}.{step}")


class Meeting:
    """Made by each agent. Keeps the port, on node 0, as long as it lives."""

    def __init__(self, run_dir: Path, where: Nodes, interface: str = "") -> None:
        """Raises TimeoutError where node 0 says nothing, ValueError for no such interface."""
        self._store: TCPStore | None = None
        if where.index == 0:
            several = where.count > 1
            self.host = local_host(interface) if several else "127.0.0.1"
            self._store = _bound(self.host, anywhere=several and not interface)
            self.port = self._store.port
            if several:
                _say(run_dir, where, host=self.host, port=self.port)
            return
        said = _wait(run_dir, where, "port", PATIENCE)
        if not said:
            raise TimeoutError(
                f"node {where.index} of the learner has not heard of node 0 within {PATIENCE:g} s: "
                f"{run_dir / FILE} must be on a file system that both see"
            )
        self.host, self.port = str(said["host"]), int(said["port"])


def rank_0_ended(run_dir: Path, where: Nodes, code: int) -> None:
    """Node 0: how it did, for the agents of other nodes."""
    if where.count > 1:
        _say(run_dir, where, code=code)


def end_of_rank_0(run_dir: Path, where: Nodes) -> int | None:
    """Other nodes: its exit code, once node 0 says it; None: it does not."""
    said = _wait(run_dir, where, "code", _LAST_WORD)
    return int(said["code"]) if said else None


def _bound(host: str, *, anywhere: bool) -> TCPStore:
    """Who chooses the port holds it: no other process can take it in between."""
    from torch.distributed import TCPStore

    if anywhere and socket.has_dualstack_ipv6():
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server(("" if anywhere else host, 0), family=family)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=PATIENCE),
        multi_tenant=True,  # the agent's own rendezvous opens it once more
        master_listen_fd=listener.detach(),
    )


def _say(run_dir: Path, where: Nodes, **what: Any) -> None:
    write_json(run_dir / FILE, {"start": where.start, **what})


def _wait(run_dir: Path, where: Nodes, key: str, seconds: float) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said = read_json(run_dir / FILE)
        if said.get("start") == where.start and key in said:
            return said
        time.sleep(0.2)
    return {}
