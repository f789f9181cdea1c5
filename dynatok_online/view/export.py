"""A session as files: the project's own trajectories, and one HTML page that needs nothing else.

The page holds the same stylesheet and the same modules as the live one, as `data:` addresses in
its import map, and the events to fold as JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dynatok_online.trajectory import Trajectory, to_row

PAGE = Path(__file__).parent / "page"

Recording = tuple[str, list[dict[str, Any]]]
"""A title, and the log of a session."""


def page_files(folder: Path = PAGE) -> dict[str, bytes]:
    """Name -> content of the files of a page: by default what draws a session, live or stored."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def page(recordings: Sequence[Recording], notes: Sequence[str] = ()) -> bytes:
    """One self-contained HTML page that shows these sessions; `notes` say what is missing."""
    files = page_files()
    modules = {
        f"dynatok/{name}": "data:text/javascript;base64," + base64.b64encode(content).decode()
        for name, content in files.items()
        if name.endswith(".js")
    }
    data = {
        "notes": list(notes),
        "recordings": [{"title": title, "events": log} for title, log in recordings],
    }
    text = files["replay.html"].decode()
    for mark, value in (
        ("/* STYLE */", files["style.css"].decode()),
        ("{/* IMPORTS */}", _script_json({"imports": modules})),
        ("{/* DATA */}", _script_json(data)),
    ):
        before, after = text.split(mark)
        text = before + value + after
    return text.encode()


def trajectory_lines(trajectories: Sequence[Trajectory]) -> bytes:
    """JSON Lines, as `dynatok_online.data.storage` reads them."""
    return b"".join(msgspec.json.encode(to_row(one)) + b"\n" for one in trajectories)


def _script_json(value: Any) -> str:
    """JSON that no HTML parser mistakes for markup."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
