"""Numbers of a run, written so that many processes can share one file.

Every record is one line of JSON, and a reader sees whole lines only. `metrics.jsonl` is the
record; TensorBoard is a copy for people, written where it is installed.

    {"time": 1730000000.0, "process": "learner", "step": 3, "loss": 1.25}
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsFloat

import msgspec
import numpy as np

from protocol.run.lines import LineFile

FILE = "metrics.jsonl"
_RESERVED = frozenset({"time", "process", "step"})


class Metrics:
    """Appends the numbers of one process to the run's `metrics.jsonl`, and to TensorBoard.

    `step` is the process's own count (optimizer steps, weight versions) or None for numbers
    that belong to a moment rather than to a step; TensorBoard shows these over seconds.
    """

    def __init__(self, run_dir: str | os.PathLike[str], process: str, *, tensorboard: bool = True):
        self._run_dir = Path(run_dir)
        self._process = process
        self._file = LineFile(self._run_dir / FILE)
        self._want_tensorboard = tensorboard
        self._writer: Any = None
        self._began = time.monotonic()

    def log(self, step: int | None = None, **numbers: SupportsFloat) -> None:
        """Append one record. A number that is not finite is written as null.

        Raises ValueError where a name is taken (`time`, `process`, `step`).
        """
        if taken := _RESERVED & numbers.keys():
            raise ValueError(f"{sorted(taken)} cannot be names of numbers: every record has them")
        if self._file.closed:
            raise ValueError(f"the metrics of '{self._process}' are closed; log before close()")
        values = {name: _number(value) for name, value in numbers.items()}
        record = {"time": round(time.time(), 3), "process": self._process, "step": step, **values}
        self._file.append(msgspec.json.encode(record))
        if self._want_tensorboard:
            seconds = int(time.monotonic() - self._began)
            self._copy_to_tensorboard(seconds if step is None else step, values)

    def close(self) -> None:
        """Flush TensorBoard and close the file. Calling it twice does no harm."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _copy_to_tensorboard(self, step: int, values: dict[str, int | float | None]) -> None:
        try:
            self._add_scalars(step, values)
        except OSError:  # a full disk ends its writing thread: the copy ends, the run does not
            self._writer = None
            self._want_tensorboard = False

    def _add_scalars(self, step: int, values: dict[str, int | float | None]) -> None:
        if self._writer is None:
            try:  # importing torch takes seconds: only once there is something to write
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._want_tensorboard = False
                return
            self._writer = SummaryWriter(str(self._run_dir / "tensorboard" / self._process))
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)


class Tail:
    """Reads `metrics.jsonl` while it grows: each call of `read` yields the records added since."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self._path = Path(run_dir) / FILE
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """New whole records, oldest first; a line that is not JSON is skipped."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added.rfind(b"\n") + 1
        self._offset += whole
        for line in added[:whole].splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=dict[str, Any])


def _number(value: SupportsFloat) -> int | float | None:
    """A plain number for JSON: numpy and torch scalars are converted, NaN and infinity are null."""
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
