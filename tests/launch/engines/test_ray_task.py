"""What runs in Ray's worker, without Ray: tests/launch/test_ray.py runs it there."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import psutil
import pytest

from launch.config import RunConfig
from launch.decode import ConfigError, decode
from launch.engines import ray_task
from launch.engines.ray_task import Crashed, run_process
from protocol.run.stop import StopRequest, ask_to_stop

LONG = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def process(monkeypatch):
    def is_(code: str) -> None:
        argv = [sys.executable, "-c", code]
        monkeypatch.setattr(ray_task, "process_argv", lambda run, name, verb: argv)

    return is_


def test_its_log_is_the_runs_and_rays_and_each_start_is_counted(tmp_path, process, capsys):
    process("import os; print('at', os.environ['DYNATOK_HOST'])")
    for start in (1, 2):
        assert run_process(str(tmp_path), "learner", "learner", "10.0.0.7") == 0
        told = json.loads((tmp_path / "ray" / "learner.json").read_text())
        assert told == {"node": "10.0.0.7", "starts": start}
        assert capsys.readouterr().out == "at 10.0.0.7\n"
    assert (tmp_path / "logs" / "learner.log").read_text() == "at 10.0.0.7\n" * 2


def test_what_may_be_started_again_is_an_exception_and_what_may_not_a_number(tmp_path, process):
    process("raise SystemExit('no more memory')")
    with pytest.raises(Crashed, match="learner exited with code 1: no more memory"):
        run_process(str(tmp_path), "learner", "learner", "here")
    process("raise SystemExit(2)")
    assert run_process(str(tmp_path), "learner", "learner", "here") == 2


def test_an_actor_that_left_before_the_end_is_started_again(tmp_path, process):
    process("pass")
    with pytest.raises(Crashed, match="actor exited with code 0"):
        run_process(str(tmp_path), "actor", "actor", "here")
    ask_to_stop(tmp_path, StopRequest("somebody"))
    assert run_process(str(tmp_path), "actor", "actor", "here") == 0
    (tmp_path / "stop.json").unlink()
    (tmp_path / "learner.json").write_text('{"finished": true}')
    assert run_process(str(tmp_path), "actor", "actor", "here") == 0


def test_cancelled_it_takes_its_process_along(tmp_path, process):
    """Ray cancels a task by an interrupt."""
    process(LONG)
    log: Path = tmp_path / "logs" / "actor.log"

    def interrupt() -> None:
        while not log.exists() or not log.read_text():
            pass
        import _thread

        _thread.interrupt_main()

    before = {child.pid for child in psutil.Process().children()}
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_process(str(tmp_path), "actor", "actor", "here")
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"learner": {"GPU": -1}}, "ray.learner.GPU is -1"),
        ({"max_actors": -1}, "write 0 "),
        ({"address": "ray://head:10001"}, "is Ray Client"),
    ],
)
def test_what_cannot_be_asked_of_ray_is_said_first(section, words):
    with pytest.raises(ConfigError, match=words):
        decode({"ray": section}, RunConfig, "run.yaml")
