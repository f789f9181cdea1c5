"""What is said of a run from outside, and how it is ended from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import control
from launch.decode import ConfigError
from launch.engines import slurm
from launch.supervisor import Outcome
from protocol.run.json_files import write_json
from protocol.run.stop import asked_to_stop
from tests.launch.test_supervisor import Quiet


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("name: one\n")
    return tmp_path


def test_what_was_never_started_is_unknown_and_what_is_no_run_an_error(run_dir, tmp_path, capsys):
    assert control.state(run_dir)["status"] == "unknown"
    control.refuse_running(run_dir)
    assert control.stop(run_dir) == 0
    assert "does not run: it is unknown" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is no run folder"):
        control.state(tmp_path / "nothing")


def test_a_run_is_running_while_its_watcher_lives(run_dir, capsys):
    display = Quiet()
    record = control.Record(display, run_dir, {"engine": "local"})
    record.update({"learner": "running", "actor": "starting again in 3 s"}, 1.0)
    assert display.states == [{"learner": "running", "actor": "starting again in 3 s"}]
    assert control.status(run_dir) == 0
    out = capsys.readouterr().out
    assert "actor        starting again in 3 s" in out
    last = json.loads(out.splitlines()[-1])
    assert (last["status"], last["engine"]) == ("running", "local")
    with pytest.raises(ConfigError, match=f"is running already .* dynatok stop {run_dir}"):
        control.refuse_running(run_dir)
    record.ended(Outcome("failed", 1, "no more memory", 3.0))
    assert control.status(run_dir) == 1
    out = capsys.readouterr().out
    assert "no more memory" in out
    assert json.loads(out.splitlines()[-1])["processes"]["learner"] == "ended"


def test_a_watcher_that_was_killed_leaves_a_lost_run(run_dir):
    record = control.Record(Quiet(), run_dir, {"engine": "local"})
    record.update({"learner": "running"}, 1.0)
    known = json.loads((run_dir / control.FILE).read_text())
    write_json(run_dir / control.FILE, known | {"pid": 2**22 - 1})
    assert control.state(run_dir)["status"] == "lost"
    # Another process may have its number by now.
    write_json(run_dir / control.FILE, known | {"started": known["started"] - 100})
    assert control.state(run_dir)["status"] == "lost"
    # On another machine only the age of the file says it.
    write_json(run_dir / control.FILE, known | {"host": "elsewhere"})
    assert control.state(run_dir)["status"] == "running"
    write_json(run_dir / control.FILE, known | {"host": "elsewhere", "time": time.time() - 100})
    assert control.state(run_dir)["status"] == "lost"


def test_stop_leaves_a_request_and_waits_for_the_end(run_dir):
    record = control.Record(Quiet(), run_dir, {"engine": "local"})
    record.update({"learner": "running"}, 1.0)

    def obey():
        while asked_to_stop(run_dir) is None:
            time.sleep(0.02)
        record.ended(Outcome("interrupted", 0, "stopped", 3.0))

    thread = threading.Thread(target=obey)
    thread.start()
    said: list[str] = []
    assert control.stop(run_dir, say=said.append) == 0
    thread.join()
    request = asked_to_stop(run_dir)
    assert request is not None
    assert request.reason == "dynatok stop"
    assert said[-1].startswith(f"{run_dir} is interrupted; to resume")
    (run_dir / "stop.json").unlink()
    record.update({"learner": "running!"}, 1.0)
    assert control.stop(run_dir, wait=0.1, say=said.append) == 1
    assert "still runs after 0.1 s; dynatok stop --now" in said[-1]


def test_stop_now_is_a_signal_to_the_one_who_watches(run_dir):
    code = (
        "import pathlib, sys, time\n"
        "from launch import control\n"
        "from tests.launch.test_supervisor import Quiet\n"
        "control.Record(Quiet(), pathlib.Path(sys.argv[1]), {'engine': 'local'})\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"ready\n"
    threading.Timer(0.3, watcher.wait).start()  # no zombie
    assert control.stop(run_dir, at_once=True, say=lambda text: None) == 0
    assert watcher.wait(10) == -signal.SIGTERM
    assert control.state(run_dir)["status"] == "lost"
    assert asked_to_stop(run_dir) is None


@pytest.mark.parametrize(
    ("written", "word", "status"),
    [
        ("submitted", "PENDING", "waiting"),
        ("submitted", "RUNNING", "running"),
        ("interrupted", "PENDING", "waiting"),  # requeued
        ("interrupted", "RUNNING", "running"),  # and started again
        ("running", "COMPLETING", "running"),
        ("finished", "COMPLETING", "finished"),
        ("finished", "COMPLETED", "finished"),
        ("interrupted", "COMPLETED", "interrupted"),
        ("running", "CANCELLED", "lost"),
        ("submitted", "NODE_FAIL", "lost"),
        ("running", "", "lost"),  # SLURM has forgotten it
    ],
)
def test_what_slurm_says_of_a_job_comes_first(run_dir, monkeypatch, written, word, status):
    job = {"JobState": word, "Reason": "None"} if word else {}
    monkeypatch.setattr(slurm, "state_of", lambda number: job)
    write_json(run_dir / control.FILE, {"engine": "slurm", "job": "7", "status": written})
    now = control.state(run_dir)
    assert now["status"] == status
    assert now["scheduler"] == (f"JobState={word}" if word else "")


@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_a_run_that_ends_well_while_it_is_looked_at_is_not_lost(run_dir, monkeypatch, engine):
    record = control.Record(Quiet(), run_dir, {"engine": engine, "job": "7"})

    def ends(*_: object) -> dict[str, str]:
        """Between the reading of the file and the other look."""
        record.ended(Outcome("finished", 0, "", 3.0))
        return {"JobState": "COMPLETED"} if engine == "slurm" else {}

    monkeypatch.setattr(slurm, "state_of", ends)
    monkeypatch.setattr(control, "_watched", lambda known: bool(ends()))
    now = control.state(run_dir)
    assert now["status"] == "finished"
    assert now.get("scheduler", "") == ("JobState=COMPLETED" if engine == "slurm" else "")
