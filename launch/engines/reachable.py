"""A run whose processes are on several machines: how they reach each other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from launch.config import RunConfig
from protocol.wire.keys import make_keys

KEYS: Final = "keys"
"""Folder of a run with the keys that were made for it."""
_LOOPBACK: Final = ("ipc://", "tcp://127.", "tcp://localhost", "tcp://[::1]")


def reachable(config: RunConfig, run_dir: Path) -> RunConfig:
    """The run so that processes on other machines of the cluster can take part in it.

    A learner that would listen on its own machine alone listens on a free port, with keys of this
    run; weights that would go through one machine's memory go through the run folder.
    """
    learner, protocol = config.learner, config.protocol
    if learner.weight_transport == "shm":
        learner = msgspec.structs.replace(learner, weight_transport="folder")
    if protocol.endpoint.startswith(_LOOPBACK):
        if protocol.keys is None:
            if not (run_dir / KEYS).exists():
                make_keys(run_dir / KEYS)
            protocol = msgspec.structs.replace(protocol, keys=str(run_dir / KEYS))
        protocol = msgspec.structs.replace(protocol, endpoint="tcp://*:0")
    return msgspec.structs.replace(config, learner=learner, protocol=protocol)
