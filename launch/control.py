"""A run that is under way, seen from outside: `dynatok status RUN_DIR`, `dynatok stop RUN_DIR`.

`RUN/launch.json` says which engine runs it and how its processes are. Who watches the processes
writes it every few seconds, so an old one says that nobody watches any more. What a scheduler
knows better (a job that waits, or was cancelled) is asked of the scheduler.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from launch.decode import ConfigError
from launch.supervisor import Display, Outcome
from protocol.run.json_files import read_json, write_json
from protocol.run.stop import StopRequest, ask_to_stop

FILE: Final = "launch.json"
EVERY: Final = 2.0
"""Seconds between two times that it is written."""
STALE: Final = 60.0
"""Seconds after which nobody seems to write it any more: clocks differ, and disks are slow."""
RUNNING: Final = ("running", "submitted", "waiting")


class Record:
    """A display that also keeps `launch.json`."""

    def __init__(self, display: Display, run_dir: Path, about: Mapping[str, Any]) -> None:
        self._display = display
        self._run_dir = run_dir
        self._about = {
            **about,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        self._state: dict[str, str] = {}
        self._next = 0.0
        self._write("running")

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """Show it, and write it down now and then."""
        self._display.update(state, seconds)
        if time.monotonic() >= self._next or state != self._state:
            self._state = dict(state)
            self._write("running")

    def say(self, text: str) -> None:
        """Show it."""
        self._display.say(text)

    def close(self) -> None:
        """Nothing more is shown."""
        self._display.close()

    def ended(self, outcome: Outcome) -> None:
        """Nobody watches any more, and nothing runs."""
        self._state = {
            name: "ended" if how == "running" else how for name, how in self._state.items()
        }
        self._write(outcome.status, message=outcome.message)

    def _write(self, status: str, **more: Any) -> None:
        self._next = time.monotonic() + EVERY
        write(self._run_dir, {**self._about, "status": status, "processes": self._state, **more})


def write(run_dir: Path, about: Mapping[str, Any]) -> None:
    """Say how the run is, as of now."""
    write_json(run_dir / FILE, {**about, "time": time.time()}, optional=True)


def engine_of(run_dir: Path) -> str:
    """The engine that the run was last started by."""
    return str(read_json(run_dir / FILE).get("engine", "local"))


def state(run_dir: Path) -> dict[str, Any]:
    """What is known of the run: `launch.json`, with what the scheduler says in its place.

    `status`: `running`, `waiting` (for its place), `finished`, `interrupted`, `failed`, `lost`
    (nobody watches it, and it did not end), or `unknown` (it was never started).
    Raises ConfigError for what is no run folder.
    """
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} is no run folder: it has no config.yaml")
    known = read_json(run_dir / FILE)
    if not known:
        return {"engine": "local", "status": "unknown", "processes": {}}
    known.setdefault("processes", {})
    if known.get("engine") == "slurm":
        _ask_slurm(known)
    elif known.get("status") == "running" and not _watched(known):
        known["status"] = "lost"
    if known["status"] == "lost":
        # It may have ended well between the two looks: then it has said so since.
        now = read_json(run_dir / FILE)
        if now.get("status") not in RUNNING:
            known |= now
    return known


def _watched(known: Mapping[str, Any]) -> bool:
    """Whether the process that watches the run is there, as far as can be seen from here."""
    if known.get("host") == socket.gethostname():
        with contextlib.suppress(psutil.Error):
            began = psutil.Process(int(known.get("pid", 0))).create_time()
            return abs(began - float(known.get("started", 0.0))) < 1.0
        return False
    return time.time() - float(known.get("time", 0.0)) < STALE


def _ask_slurm(known: dict[str, Any]) -> None:
    from launch.engines import slurm

    job = slurm.state_of(str(known.get("job")))
    word = job.get("JobState", "")
    known["scheduler"] = " ".join(
        f"{name}={job[name]}"
        for name in ("JobState", "Reason", "NodeList", "RunTime", "TimeLimit", "Restarts")
        if job.get(name) not in (None, "", "(null)", "None")
    )
    if word in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING"):
        known["status"] = "waiting"
    elif word == "RUNNING":  # what the file says may be from before it was requeued
        known["status"] = "running"
    elif word != "COMPLETING" and known["status"] in RUNNING:
        known["status"] = "lost"


def refuse_running(run_dir: Path) -> None:
    """Raise ConfigError where the run is under way: two would write the same files."""
    now = state(run_dir)
    if now["status"] in RUNNING:
        raise ConfigError(
            f"{run_dir} is {now['status']} already ({_where(now)}); dynatok stop {run_dir}"
        )


def status(run_dir: Path) -> int:
    """Print how the run is: lines for people, the last one JSON. Exit code 1: it has failed."""
    now = state(run_dir)
    learner = read_json(run_dir / "learner.json")
    print(f"{run_dir}: {now['status']} ({_where(now)})")
    if now.get("scheduler"):
        print(f"  {now['scheduler']}")
    if now.get("message"):
        print(f"  {now['message']}")
    for name, how in now["processes"].items():
        print(f"  {name:<12} {how}")
    steps = learner.get("learner_steps")
    if steps is not None:
        print(f"  step {steps}, weights {learner.get('weights_published', '-')}")
    keep = {key: now.get(key) for key in ("engine", "status", "job", "host", "processes")}
    print(json.dumps({"run_dir": str(run_dir), **keep, "learner_steps": steps}))
    return 1 if now["status"] in ("failed", "lost") else 0


def stop(
    run_dir: Path,
    *,
    at_once: bool = False,
    wait: float = 300.0,
    say: Callable[[str], None] = print,
) -> int:
    """End the run: the learner saves first, unless `at_once`. The exit code.

    Returns once it has ended; 1: it had not after `wait` seconds.
    """
    now = state(run_dir)
    if now["status"] not in RUNNING:
        say(f"{run_dir} does not run: it is {now['status']}")
        return 0
    if now["engine"] == "slurm" and (at_once or now["status"] == "waiting"):
        from launch.engines import slurm

        slurm.ask("scancel", str(now["job"]))
        write(run_dir, {**read_json(run_dir / FILE), "status": "interrupted"})
        say(f"job {now['job']} is cancelled")
        return 0
    if at_once:
        _signal(now)
    else:
        ask_to_stop(run_dir, StopRequest("dynatok stop"))
    say(f"asked to stop; waiting until it has (logs: {run_dir / 'logs'})")
    end = time.monotonic() + wait
    while time.monotonic() < end:
        now = state(run_dir)
        if now["status"] not in RUNNING:
            say(f"{run_dir} is {now['status']}; to resume: dynatok launch --resume {run_dir}")
            return 0
        time.sleep(0.5)
    say(f"{run_dir} still runs after {wait:g} s; dynatok stop --now {run_dir} ends it at once")
    return 1


def _signal(now: Mapping[str, Any]) -> None:
    if now.get("host") != socket.gethostname():
        raise ConfigError(f"--now: the run is watched on {now.get('host')}; run this there")
    os.kill(int(now["pid"]), signal.SIGTERM)


def _where(now: Mapping[str, Any]) -> str:
    if now["engine"] == "slurm":
        return f"slurm, job {now.get('job')}"
    return f"{now['engine']}, watched by pid {now.get('pid')} on {now.get('host')}"
