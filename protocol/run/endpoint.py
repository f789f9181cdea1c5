"""Where the learner of a run listens: `RUN/endpoint.json`, written once its socket is bound.

Two parts of an address may be left to the learner that binds it, and are then found in that file:

| `protocol.endpoint` | the learner binds                           | actors connect to          |
|---------------------|---------------------------------------------|----------------------------|
| `ipc://*`           | a socket in a new folder of this user alone | that socket                |
| `tcp://127.0.0.1:0` | a free port                                 | 127.0.0.1, the port it has |
| `tcp://*:0`         | a free port of every interface, or of       | its host, the port it has  |
|                     | `protocol.interface`                        |                            |

No other process can take a port in between: the one who chooses it holds it. Actors look again
while they hear nothing: a learner that is started again takes the same address where it can.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

import psutil

from protocol.run.json_files import read_json, write_json

FILE: Final = "endpoint.json"
HOST: Final = "DYNATOK_HOST"
"""Variable with the name or address by which other machines reach this one, where its host name
is not that."""
_PRIVATE: Final = "ipc://*"
_FOLDER: Final = "dynatok-run-"
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%A-Za-z0-9]+\]")


def has_port(endpoint: str) -> bool:
    """Whether an address says by itself where to connect."""
    if endpoint.startswith("tcp://"):
        return not endpoint.endswith(":0") and not _anywhere(endpoint)
    return endpoint != _PRIVATE


def write_endpoint(run_dir: Path, endpoint: str) -> None:
    """Say where the learner listens."""
    write_json(run_dir / FILE, {"endpoint": endpoint})


def find_endpoint(run_dir: Path, endpoint: str) -> str | None:
    """`endpoint`, with what the learner of the run has chosen; None: it has not yet.

    A host that was configured stays: the file only completes it.
    """
    if has_port(endpoint):
        return endpoint
    said = str(read_json(run_dir / FILE).get("endpoint"))
    if endpoint == _PRIVATE:
        return said if said.startswith("ipc:///") else None
    host, _, port = said.removeprefix("tcp://").rpartition(":")
    if not _HOST.fullmatch(host) or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return f"tcp://{host if _anywhere(endpoint) else host_of(endpoint)}:{port}"


def to_bind(endpoint: str, interface: str = "", before: str | None = None) -> list[str]:
    """Addresses to try, in this order. `before`: what actors were told before a restart.

    Raises ValueError where there is no such interface.
    """
    if endpoint == _PRIVATE:
        again = [] if before is None else [before]
        return [*again, f"ipc://{tempfile.mkdtemp(prefix=_FOLDER)}/learner"]
    if not endpoint.startswith("tcp://"):
        return [endpoint]
    host, port = host_of(endpoint), endpoint.rpartition(":")[2]
    if interface:
        host = _address_of(interface, v6=host == "[::]")
    again = [] if before is None else [f"tcp://{host}:{before.rpartition(':')[2]}"]
    return [*again, f"tcp://{host}:{port}"]


def to_tell(bound: str, endpoint: str, interface: str = "") -> str:
    """What actors are told where `bound` is listened on: this host's name for every interface."""
    if not bound.startswith("tcp://") or not _anywhere(endpoint) or interface:
        return bound
    host = local_host()
    if ":" in host and not host.startswith("["):  # as who writes an IPv6 address alone writes it
        host = f"[{host}]"
    return f"tcp://{host}:{bound.rpartition(':')[2]}"


def local_host(interface: str = "") -> str:
    """How other machines call this one: its address at an interface, or a name.

    Raises ValueError where there is no such interface.
    """
    if interface:
        return _address_of(interface, v6=False)
    return os.environ.get(HOST) or socket.gethostname()


def address_with(address: str, port: int) -> str:
    """The same host with another port, for weights; `ipc`: another socket in the same folder."""
    if not address.startswith("tcp://"):
        return f"{address}.weights"
    return f"tcp://{host_of(address)}:{port}"


def host_of(endpoint: str) -> str:
    """The host of `tcp://HOST:PORT`."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def speaks_v6(endpoint: str) -> bool:
    """Whether the socket has to be opened for IPv6, too."""
    return "[" in endpoint


def forget_endpoint(run_dir: Path) -> None:
    """Nobody listens any more: remove the file, and the folder that was made for a socket."""
    said = str(read_json(run_dir / FILE).get("endpoint"))
    (run_dir / FILE).unlink(missing_ok=True)
    remove_socket(said)


def remove_socket(address: str) -> None:
    """Remove the folder that `to_bind` made for this address."""
    folder = Path(address.removeprefix("ipc://")).parent
    if address.startswith("ipc:///") and folder.name.startswith(_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)


def _anywhere(endpoint: str) -> bool:
    return host_of(endpoint) in ("*", "0.0.0.0", "[::]")


def _address_of(interface: str, *, v6: bool) -> str:
    """The address of a network interface of this machine."""
    known = psutil.net_if_addrs()
    if interface not in known:
        raise ValueError(
            f"protocol.interface: this machine has no '{interface}'; it has {', '.join(known)}"
        )
    for one in known[interface]:
        if one.family == (socket.AF_INET6 if v6 else socket.AF_INET):
            return f"[{one.address}]" if v6 else str(one.address)
    kind = "IPv6" if v6 else "IPv4"
    raise ValueError(f"protocol.interface: '{interface}' has no {kind} address")
