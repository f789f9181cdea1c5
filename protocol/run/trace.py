"""Where every trajectory went: `RUN/traces.jsonl`, one line per event, from edit to optimizer step.

A trajectory has one trace id from its first token on; it travels in `Trajectory.info`. Whole
lines are appended with one write, so all processes of a run share the file.

    {"time": .., "process": "actor", "event": "sent", "trace": "actor.17..9.5", "edits": [..], ..}
    {"time": .., "process": "learner", "event": "trained", "step": 4, "traces": ["actor.17..9.5"]}
    {"time": .., "process": "learner", "event": "dropped", "cause": "waited_stale", "traces": [..]}
    {"time": .., "process": "learner", "event": "resumed", "step": 3}

After `resumed`, what was trained in later steps, or dropped since that checkpoint, did not
happen: the learner was killed, and its trajectories are given out again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from dynatok_online.trajectory import Trajectory
from protocol.run.lines import LineFile

FILE: Final = "traces.jsonl"
KEY: Final = "trace"
"""Name of the trace id in `Trajectory.info`."""


def trace_of(trajectory: Trajectory) -> str:
    """Its trace id (its own id, where nobody gave it one)."""
    return trajectory.info.get(KEY, trajectory.trajectory_id)


class Traces:
    """Appends the events of one process."""

    def __init__(self, run_dir: str | os.PathLike[str], process: str) -> None:
        self._process = process
        self._file = LineFile(Path(run_dir) / FILE)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; after `close`, nothing."""
        record = {"time": round(time.time(), 3), "process": self._process, "event": event}
        self._file.append(msgspec.json.encode({**record, **fields}))

    def close(self) -> None:
        """Close the file. Calling it twice does no harm."""
        self._file.close()


class Account(NamedTuple):
    """What became of the trajectories of a run."""

    sent: set[str]
    """Finished, and in an actor's journal."""
    trained: dict[str, int]
    """Trace id -> the optimizer step that trained on it."""
    twice: list[str]
    """Given out again after it was trained on, relative to the checkpoints that were resumed."""
    dropped: dict[str, str]
    """Trace id -> why it was not trained on."""

    @property
    def open(self) -> set[str]:
        """Sent, and neither trained on nor dropped: they wait in a journal, or are lost."""
        return self.sent - self.trained.keys() - self.dropped.keys()

    def causes(self) -> dict[str, int]:
        """How many were dropped, by cause."""
        return dict(Counter(self.dropped.values()))


def account(run_dir: str | os.PathLike[str]) -> Account:
    """Read a run's traces from its start. Lines that are not JSON are skipped."""
    found = Account(set(), {}, [], {})
    at_step = 0
    dropped_at: dict[str, int] = {}
    for line in (Path(run_dir) / FILE).read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            record = msgspec.json.decode(line, type=dict[str, Any])
            event = record.get("event")
            if event == "sent":
                found.sent.add(record["trace"])
            elif event == "trained":
                at_step = record["step"]
                found.twice.extend(one for one in record["traces"] if one in found.trained)
                found.trained.update(dict.fromkeys(record["traces"], at_step))
            elif event == "dropped":
                found.twice.extend(one for one in record["traces"] if one in found.trained)
                found.dropped.update(dict.fromkeys(record["traces"], record["cause"]))
                dropped_at.update(dict.fromkeys(record["traces"], at_step))
            elif event == "resumed":
                at_step = record["step"]
                for one in [one for one, step in found.trained.items() if step > at_step]:
                    del found.trained[one]
                for one in [one for one, step in dropped_at.items() if step > at_step]:
                    del found.dropped[one], dropped_at[one]
    return found
