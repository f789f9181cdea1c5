"""Addresses that other machines can reach need keys; numbers make sense or are refused."""

from __future__ import annotations

import pytest

from protocol.config import ProtocolConfig


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:0",
        "tcp://127.1.2.3:80",
        "tcp://localhost:5555",
        "tcp://[::1]:5555",
        "ipc://x",
    ],
)
def test_this_machine_needs_no_keys(endpoint: str) -> None:
    assert ProtocolConfig(endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://10.0.0.1:1", "tcp://node7:1", "tcp://[::]:1"],
)
def test_any_other_needs_keys(endpoint: str) -> None:
    with pytest.raises(ValueError, match="make keys with `dynatok keys`"):
        ProtocolConfig(endpoint=endpoint)
    assert ProtocolConfig(endpoint=endpoint, keys="keys").keys == "keys"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("127.0.0.1:5", "write tcp://HOST:PORT"),
        ("tcp://127.0.0.1", "write tcp://HOST:PORT"),
        ("tcp://:5", "write tcp://HOST:PORT"),
        ("udp://127.0.0.1:5", "write tcp://HOST:PORT"),
        ("tcp://127.0.0.1:http", "0 to 65535"),
        ("tcp://127.0.0.1:70000", "0 to 65535"),
        ("tcp://127.0.0.1:-1", "0 to 65535"),
    ],
)
def test_malformed_addresses_are_explained(endpoint: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ProtocolConfig(endpoint=endpoint)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"credits": 0}, "protocol.credits must be above 0"),
        ({"heartbeat_seconds": -1.0}, "protocol.heartbeat_seconds must be above 0"),
        ({"resend_seconds": float("nan")}, "protocol.resend_seconds must be above 0"),
        ({"linger_seconds": -1.0}, "protocol.linger_seconds must not be negative"),
        ({"heartbeat_seconds": 5.0, "dead_after_seconds": 6.0}, "at least twice"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(values: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ProtocolConfig(**values)  # type: ignore[arg-type]
