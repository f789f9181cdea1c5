"""A request to end a run well: `RUN/stop.json`, whatever engine runs its processes.

The learner saves a checkpoint after the step that it is in, and ends; who started the processes
ends the actors after it. What actors have finished is in their journals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from protocol.run.json_files import write_json

FILE: Final = "stop.json"


class StopRequest(msgspec.Struct, frozen=True):
    """Who asks, and whether the run is to go on later by itself."""

    reason: str
    again: bool = False


def ask_to_stop(run_dir: Path, request: StopRequest) -> None:
    """Leave a request. Raises OSError."""
    write_json(run_dir / FILE, msgspec.to_builtins(request))


def asked_to_stop(run_dir: Path) -> StopRequest | None:
    """The request, or None."""
    try:
        return msgspec.json.decode((run_dir / FILE).read_bytes(), type=StopRequest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        return StopRequest(f"{FILE} that cannot be read ({error})")


def forget_stop(run_dir: Path) -> None:
    """The run begins, or goes on."""
    (run_dir / FILE).unlink(missing_ok=True)
