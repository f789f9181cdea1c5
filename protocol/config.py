"""How the processes of a run talk to each other.

Anything that is not this machine needs CURVE keys, or the configuration does not load.
"""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec

_LOCAL: Final = ("ipc://", "inproc://")


class ProtocolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Address, credits, limits and deadlines of the connection between actors and learner."""

    endpoint: str = "ipc://*"
    """Where the learner listens. `ipc://*`: a socket that only this user of this machine can open;
    `tcp://*:0`: a free port that other machines reach; actors find either in the run folder. Actors
    that do not share that folder need `tcp://HOST:PORT` here."""
    interface: str = ""
    """Network interface of the learner's machine (`ib0`) for `tcp://*:PORT`; empty: all."""
    weights_port: int = 0
    """Port of the weight transport `zmq`, for firewalls and tunnels; 0: a free one."""
    weights_store: str = ""
    """Where the weight transport `store` puts its objects: any address that fsspec knows
    (`s3://bucket/folder`, `gs://...`, `file:///shared/folder`)."""
    credits: int = 64
    """Trajectories of one actor that may be in flight or waiting at the learner, untrained."""
    heartbeat_seconds: float = 1.0
    """Most seconds until an actor says what has changed; where nothing has, it says so eight times
    in `dead_after_seconds`."""
    dead_after_seconds: float = 20.0
    """A peer that was silent for so long is gone until it is heard again."""
    connect_seconds: float = 180.0
    """How long an actor waits for the learner's first answer, and for one that went silent."""
    resend_seconds: float = 5.0
    """A trajectory without an acknowledgement for so long is sent again; then after twice as long,
    and so on."""
    linger_seconds: float = 1.0
    """How long closing waits for what is still to be sent."""
    max_message_bytes: int = 16 * 2**20
    """Longest message that is read at all (a token with its logprob takes 8 bytes)."""
    keys: str | None = None
    """Folder of CURVE keys (made by `dynatok keys`); needed off this machine."""

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint, has_keys=self.keys is not None)
        if self.interface and not self.endpoint.startswith(("tcp://*:", "tcp://[::]:")):
            raise ValueError(
                f"protocol.interface is '{self.interface}', but protocol.endpoint "
                f"'{self.endpoint}' names a host by itself; write tcp://*:0"
            )
        if not 0 <= self.weights_port < 65536:
            raise ValueError(
                f"protocol.weights_port is {self.weights_port}; write a number from 0 to 65535"
            )
        for name in (
            "credits",
            "heartbeat_seconds",
            "dead_after_seconds",
            "connect_seconds",
            "resend_seconds",
            "max_message_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"protocol.{name} must be above 0, but it is {getattr(self, name)}"
                )
        if not self.linger_seconds >= 0:
            raise ValueError(
                f"protocol.linger_seconds must not be negative, but it is {self.linger_seconds}"
            )
        if self.dead_after_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"protocol.dead_after_seconds ({self.dead_after_seconds}) must be at least twice "
                f"protocol.heartbeat_seconds ({self.heartbeat_seconds}), or a live peer looks dead"
            )


def check_endpoint(endpoint: str, *, has_keys: bool) -> None:
    """Raise ValueError for an endpoint that is malformed, or open to others without keys."""
    if endpoint.startswith(_LOCAL):
        return
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not host:
        raise ValueError(
            f"protocol.endpoint '{endpoint}' is not an address; write tcp://HOST:PORT, such as "
            "tcp://127.0.0.1:5555"
        )
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(
            f"protocol.endpoint '{endpoint}' has port '{port}'; write a number from 0 to 65535 "
            "(0 picks a free one)"
        )
    if not has_keys and not is_loopback(host):
        raise ValueError(
            f"protocol.endpoint '{endpoint}' can be reached from other machines, but protocol.keys "
            "is not set; make keys with `dynatok keys` and set protocol.keys to their folder, or "
            "use ipc://*"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
