"""By which names the page may be reached."""

from __future__ import annotations

import pytest

from actor.demo.names import unknown_host, unknown_origin

LISTED = ("node7", "hub.example:8443")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8790", "http://127.0.0.1:8790"),
        ("localhost:9000", "http://localhost:9000"),  # a tunnel
        ("[::1]:8790", "http://[::1]:8790"),
        ("node7:8790", "http://node7:8790"),
        ("node7", "https://node7"),
        ("hub.example:8443", "https://hub.example:8443"),
        ("localhost:8790", "https://hub.example:8443"),  # a proxy that asks by its own name
    ],
)
def test_known_names(host, origin):
    assert unknown_host({"host": host}, LISTED) == ""
    assert unknown_origin({"host": host, "origin": origin}, LISTED) == ""


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",  # a name that was pointed at this machine
        "localhost.evil.example:8790",
        "hub.example",  # listed with a port
        "",
    ],
)
def test_unknown_hosts_are_told_what_to_write(host):
    assert f"--hosts '[\"{host}\"]'" in unknown_host({"host": host}, LISTED)


@pytest.mark.parametrize(
    ("origin", "unknown"),
    [
        ("http://localhost:8888", "localhost:8888"),  # another page on this machine
        ("http://evil.example", "evil.example"),
        ("null", "null"),
        ("", ""),
    ],
)
def test_unknown_origins_are_told_what_to_write(origin, unknown):
    headers = {"host": "localhost:8790", "origin": origin}
    assert f"--hosts '[\"{unknown}\"]'" in unknown_origin(headers, LISTED)


def test_what_is_said_holds_no_control_characters():
    said = unknown_host({"host": "\x1b[31mevil\u202e" + "x" * 1000}, LISTED)
    assert said.isprintable()
    assert len(said) < 500
