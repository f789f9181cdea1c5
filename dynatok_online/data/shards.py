"""A folder that trajectories are collected into, and that survives being killed at any moment.

A trajectory is first appended to a journal, `.pending.jsonl`; as soon as there are enough of them
they become a Parquet shard, whole or not at all, and the journal begins anew. Opening the folder
again finds what is there: every trajectory counts once, whether it stands in a shard, in the
journal, or in both (killed between the two); half a line at the journal's end never happened.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from dynatok_online.data.storage import read_trajectories, write_trajectories
from dynatok_online.trajectory import Trajectory, to_row

JOURNAL = ".pending.jsonl"


class Shards:
    """The shards of one folder, `part-00000.parquet`, ..., of at most `size` trajectories each."""

    def __init__(self, folder: str | os.PathLike[str], size: int = 250) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._size = size
        self.done: set[str] = set()
        """`trajectory_id` of all that is held."""
        self._clean()
        files = sorted(self.folder.glob("part-*.parquet"))
        self._next = 1 + max((int(file.stem.removeprefix("part-")) for file in files), default=-1)
        for file in files:
            self.done |= _ids(file)
        self._journal = self.folder / JOURNAL
        self._pending = self._recovered()
        self.done |= {one.trajectory_id for one in self._pending}
        self._rewrite_journal()

    def _clean(self) -> None:
        for left_over in self.folder.glob(".*.partial"):
            left_over.unlink()

    def _recovered(self) -> list[Trajectory]:
        if not self._journal.exists():
            return []
        found: dict[str, Trajectory] = {}
        for one in read_trajectories(self._journal, on_bad=lambda text: None):
            if one.trajectory_id not in self.done:
                found.setdefault(one.trajectory_id, one)
        return list(found.values())

    def _rewrite_journal(self) -> None:
        """The journal with what is pending, and nothing else; one that cannot be half there."""
        fresh = self._journal.with_name(f"{JOURNAL}.partial")
        fresh.write_bytes(b"".join(_line(one) for one in self._pending))
        fresh.replace(self._journal)

    def add(self, trajectory: Trajectory) -> None:
        """Hold a trajectory; when this returns, killing the process does not lose it.

        ValueError where one of its name is held already.
        """
        if trajectory.trajectory_id in self.done:
            raise ValueError(f"trajectory {trajectory.trajectory_id!r} is already in {self.folder}")
        with self._journal.open("ab") as journal:
            journal.write(_line(trajectory))
        self.done.add(trajectory.trajectory_id)
        self._pending.append(trajectory)
        if len(self._pending) >= self._size:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a shard."""
        if self._pending:
            write_trajectories(self.folder / f"part-{self._next:05d}.parquet", self._pending)
            self._next += 1
            self._pending = []
            self._rewrite_journal()

    def close(self) -> None:
        """Flush, and remove the journal: the folder is complete."""
        self.flush()
        self._journal.unlink(missing_ok=True)


def _line(trajectory: Trajectory) -> bytes:
    return msgspec.json.encode(to_row(trajectory)) + b"\n"


def _ids(file: Path) -> set[str]:
    import pyarrow.parquet as parquet

    column = parquet.read_table(file, columns=["trajectory_id"]).column(0)
    return set(column.to_pylist())
