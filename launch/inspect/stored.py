"""Stored trajectories, wherever they lie: files, data sets, journals, run folders.

Nothing is changed on disk, also not the torn end of a journal that a running process is writing.
What cannot be read is said, with its place, and the rest is given out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynatok_online.data.storage import SUFFIXES, read_trajectories
from dynatok_online.trajectory import Trajectory
from launch.decode import ConfigError, read_yaml

_JOURNAL = ".journal"
_LIMIT = 1 << 30
"""Longest frame: whatever a journal holds fits into it."""


@dataclass
class Stored:
    """One place that trajectories were read from."""

    path: Path
    trajectories: list[Trajectory] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """What could not be read, a line for each place."""


def read(path: Path) -> list[Stored]:
    """Everything under `path`. Raises ConfigError where nothing that we know lies there."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    found = [_read_one(place) for place in _places(path)]
    if not found:
        raise ConfigError(
            f"{path}: holds no trajectories; name a .jsonl or .parquet file, a folder of them, a "
            "journal, or a run folder"
        )
    return found


def model_of(path: Path, places: list[Stored]) -> str | None:
    """The model whose tokens these are, as far as it is recorded."""
    for folder in (path, *path.parents[:3]):
        if (folder / "actor.yaml").is_file():
            return str(read_yaml(folder / "actor.yaml").get("model", "")) or None
    for stored in places:
        for one in stored.trajectories[:1]:
            if "model" in one.info:
                return one.info["model"]
            if one.info.get("task", "").startswith("tiny-"):
                return "tiny"
    return None


def _places(path: Path) -> list[Path]:
    """Data files and journals under a folder, in order of name."""
    if path.is_file():
        return [path.parent if path.suffix == _JOURNAL else path]
    places = []
    for one in sorted(path.rglob("*")):
        inside = one.relative_to(path).parts
        if any(part.startswith(".") for part in inside) or not one.is_file():
            continue
        if one.suffix == _JOURNAL:
            places.append(one.parent)
        # A run's metrics and traces are JSON Lines too, but hold no trajectories.
        elif one.suffix in SUFFIXES and one.stem not in ("metrics", "traces"):
            places.append(one)
    return list(dict.fromkeys(places))


def _read_one(place: Path) -> Stored:
    stored = Stored(place)
    try:
        reading = (
            _read_journal(place, stored.damage)
            if place.is_dir()
            else read_trajectories(place, stored.damage.append)
        )
        stored.trajectories += reading
    except (ValueError, OSError) as error:
        stored.damage.append(f"{place}: {error}")
    return stored


def _read_journal(folder: Path, damage: list[str]) -> Iterator[Trajectory]:
    from protocol.delivery.journal import Journal
    from protocol.wire.codec import decode_actor
    from protocol.wire.envelope import HEADER, Rejected, unseal
    from protocol.wire.messages import TrajectoryMessage

    with tempfile.TemporaryDirectory(prefix="dynatok-inspect-") as copy:
        segments = sorted(folder.glob(f"*{_JOURNAL}"))
        for segment in segments[:-1]:
            (Path(copy) / segment.name).symlink_to(segment.resolve())
        # Opening a journal cuts off a torn end, which lies in the last segment.
        shutil.copyfile(segments[-1], Path(copy) / segments[-1].name)
        journal = Journal(Path(copy), max_record_bytes=_LIMIT)
        try:
            for index, frame in journal.records():
                try:
                    # The run's id follows the header; `unseal` checks it like all the rest.
                    length = HEADER.unpack_from(frame)[-2]
                    run = frame[HEADER.size : HEADER.size + length].decode("ascii")
                    message = decode_actor(unseal(frame, run, _LIMIT).payload)
                except (Rejected, UnicodeDecodeError) as error:
                    damage.append(f"{folder}: record {index}: {error}")
                    continue
                if isinstance(message, TrajectoryMessage):
                    yield message.trajectory
            if journal.torn_bytes:
                damage.append(
                    f"{folder}: the last {journal.torn_bytes} bytes are the beginning of a record"
                )
            if journal.damaged:
                damage.append(
                    f"{folder}: damaged in {journal.damaged} places, where {journal.missing} "
                    "records are missing"
                )
        finally:
            journal.close()
