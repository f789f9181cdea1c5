"""By which names a browser may reach the page.

A site elsewhere can point a name of its own at this machine, but not the names of loopback: those
are known with any port, so that tunnels work. A page that another site shows can open connections
to any name, but its browser says where it comes from: that must be the name itself, or a listed
one. Cookies alone would not do: they do not tell ports apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


def why_not(headers: Mapping[str, str], listed: Sequence[str]) -> str:
    """What is wrong with a request's `Host` and `Origin`, as a line for people; empty: nothing."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if not (_LOOPBACK.fullmatch(host) or _is_listed(host, listed)):
        return _unknown(host)
    if origin is not None:
        place = origin.partition("://")[2]
        if place != host and not _is_listed(place, listed):
            return _unknown(place or origin)
    return ""


def _is_listed(place: str, listed: Sequence[str]) -> bool:
    return place in listed or re.sub(r":\d+$", "", place) in listed


def _unknown(place: str) -> str:
    shown = "".join(one for one in place[:100] if one.isascii() and one.isprintable())
    return (
        f"The page was asked for as {shown!r}, a name that it does not know. If that is your "
        f'proxy, start the demo with --hosts \'["{shown}"]\', or write hosts: ["{shown}"] '
        "into its configuration."
    )
