"""What runs in Ray's worker: one process of a run, from its start to its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from launch import environment, process
from launch.engines.local import process_argv
from launch.janitor import Janitor
from launch.supervisor import FINAL, PATIENCE
from protocol.run.endpoint import HOST
from protocol.run.json_files import read_json, write_json
from protocol.run.stop import asked_to_stop

FOLDER: Final = "ray"
"""Folder of a run that says where each process was started, and how often."""


class Crashed(RuntimeError):
    """The process has ended and should be started again: Ray does."""


def run_process(run_dir: str, name: str, verb: str, address: str) -> int:
    """Run one process of a run on this node; 0, or an exit code of those that say: not again.

    Its log goes to the run folder, and to Ray's. Raises Crashed. Where this worker is cancelled or
    killed, the process ends with it.
    """
    run = Path(run_dir)
    told = run / FOLDER / f"{name}.json"
    starts = int(read_json(told).get("starts", 0)) + 1
    write_json(told, {"node": address, "starts": starts})
    log = run / "logs" / f"{name}.log"
    seen = log.stat().st_size if log.exists() else 0
    janitor = Janitor()  # ends it where this worker is killed
    child = process.Child(
        name,
        process_argv(run, name, verb),
        environment.for_child(verb, processes=1) | {HOST: address},
        log,
    )
    janitor.watch(child.pid)
    try:
        while (code := child.poll()) is None:
            time.sleep(0.5)
            seen = _copy(log, seen)
    finally:
        process.stop([child.pid], PATIENCE)
        _copy(log, seen)
        janitor.dismiss()
    left = verb == "actor" and code == 0 and not _over(run)
    if code in (0, *FINAL) and not left:
        return code
    raise Crashed(f"{name} {process.describe_exit(code)}: {child.last_words(1)}")


def _over(run: Path) -> bool:
    """Whether an actor may leave: the learner has seen it off, or all were asked to stop."""
    finished = read_json(run / "learner.json").get("finished")
    return bool(finished) or asked_to_stop(run) is not None


def _copy(log: Path, since: int) -> int:
    """What was added to the log goes to Ray's, too; its new end."""
    with log.open("rb") as file:
        file.seek(since)
        added = file.read()
    sys.stdout.write(added.decode(errors="replace"))
    sys.stdout.flush()
    return since + len(added)
