"""JSON files that others read while a process keeps writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from protocol.run.lines import NO_ROOM


def write_json(path: Path, value: Any, *, optional: bool = False) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it.

    `optional`: where the disk is full, the old one stays. Raises OSError otherwise.
    """
    try:
        _write(path, value)
    except OSError as error:
        if not optional or error.errno not in NO_ROOM:
            raise


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none yet.

    Raises OSError where it cannot be read: what a disk does not give is not what was never written.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return {}
