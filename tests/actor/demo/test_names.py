"""By which names the page may be reached."""

from __future__ import annotations

import pytest

from actor.demo.names import why_not

LISTED = ("node7", "hub.example:8443")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8790", None),
        ("localhost:9000", "http://localhost:9000"),  # a tunnel
        ("[::1]:8790", "http://[::1]:8790"),
        ("node7:8790", "http://node7:8790"),
        ("node7", "https://node7"),
        ("hub.example:8443", "https://hub.example:8443"),
        ("localhost:8790", "https://hub.example:8443"),  # a proxy that asks by its own name
    ],
)
def test_known_names(host, origin):
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert why_not(headers, LISTED) == ""


@pytest.mark.parametrize(
    ("host", "origin", "unknown"),
    [
        ("evil.example", None, "evil.example"),  # a name that was pointed at this machine
        ("localhost.evil.example:8790", None, "localhost.evil.example:8790"),
        ("hub.example", None, "hub.example"),  # listed with a port
        ("", None, ""),
        ("localhost:8790", "http://localhost:8888", "localhost:8888"),  # another page of theirs
        ("localhost:8790", "http://evil.example", "evil.example"),
        ("node7", "null", "null"),
    ],
)
def test_unknown_names_are_said_with_what_to_write(host, origin, unknown):
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert f"--hosts '[\"{unknown}\"]'" in why_not(headers, LISTED)


def test_what_is_said_holds_no_control_characters():
    assert "\x1b" not in why_not({"host": "\x1b[31mevil\u202e" + "x" * 1000}, LISTED)
