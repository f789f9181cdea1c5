"""Where the learner of a run listens: `RUN/endpoint.json`, written once its socket is bound.

Port 0 in `protocol.endpoint` leaves the choice to the one that binds it, so no other process can
take the port in between. Actors find the number here, and look again while they hear nothing: a
learner that is started again takes the same port where it can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocol.run.json_files import read_json, write_json

FILE: Final = "endpoint.json"


def has_port(endpoint: str) -> bool:
    """Whether an address says by itself where to connect."""
    return not endpoint.startswith("tcp://") or not endpoint.endswith(":0")


def write_endpoint(run_dir: Path, endpoint: str) -> None:
    """Say where the learner listens."""
    write_json(run_dir / FILE, {"endpoint": endpoint})


def find_endpoint(run_dir: Path, endpoint: str) -> str | None:
    """`endpoint`, with the port that the learner of the run has bound; None: it has not yet.

    The host is the one that was configured: the file only completes it.
    """
    if has_port(endpoint):
        return endpoint
    host, _, port = str(read_json(run_dir / FILE).get("endpoint")).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return f"{endpoint.rpartition(':')[0]}:{port}"
