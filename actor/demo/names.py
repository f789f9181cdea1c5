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


def unknown_host(headers: Mapping[str, str], listed: Sequence[str]) -> str:
    """Why a request's `Host` is refused, as a line for people; empty: it is not."""
    host = headers.get("host", "")
    return "" if _LOOPBACK.fullmatch(host) or _is_listed(host, listed) else _unknown(host)


def unknown_origin(headers: Mapping[str, str], listed: Sequence[str]) -> str:
    """Why the page at a request's `Origin` may not steer; empty: it may."""
    origin = headers.get("origin", "")
    place = origin.partition("://")[2]
    known = place and (place == headers.get("host") or _is_listed(place, listed))
    return "" if known else _unknown(place or origin)


def _is_listed(place: str, listed: Sequence[str]) -> bool:
    return place in listed or re.sub(r":\d+$", "", place) in listed


def _unknown(place: str) -> str:
    shown = "".join(one for one in place[:100] if one.isascii() and one.isprintable())
    return (
        f"The page was asked for as {shown!r}, a name that it does not know. If that is your "
        f'proxy, start the demo with --hosts \'["{shown}"]\', or write hosts: ["{shown}"] '
        "into its configuration."
    )
