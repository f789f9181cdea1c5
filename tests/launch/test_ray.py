"""`--on ray` on a real Ray cluster of three nodes here, with the real actor and learner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from learner.online.checkpoint import latest
from protocol.run.metrics import Metrics
from protocol.run.trace import account
from tests.launch.running import all_came_once, launched, nothing_lost, sent_of, steps

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3000)]

SMALL = (
    *("--learner.trajectories_per_step", "4", "--learner.training.save_steps", "10"),
    *("--learner.max_seconds", "0", "--actor.evaluation.enabled", "false"),
    *("--ray.learner.CPU", "1", "--ray.learner.head", "1"),
)
"""The learner stays on the head; actors go where there is room."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from _cluster(monkeypatch)


def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with room for the learner, which `add_node` makes larger."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dynatok-online[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Where others fill this machine's memory, Ray would end processes of ours.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    head = {"num_cpus": 1, "resources": {"head": 1}, "include_dashboard": False}
    one = Cluster(initialize_head=False)
    _patiently(lambda: one.add_node(**head))
    monkeypatch.setenv("RAY_ADDRESS", one.address)
    yield one
    one.shutdown()


def _patiently(add: Callable[[], Any]) -> Any:
    """A node has thirty seconds to start, which a busy machine may not have for it."""
    for attempt in range(5):
        try:
            return add()
        except Exception as error:
            if "timed out" not in str(error) or attempt == 4:
                raise
    raise AssertionError


def dynatok(*arguments: str) -> str:
    """Run a verb to its good end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dynatok("status", str(run)).splitlines()[-1])
    return found


def run_folder(folder: Path, process: subprocess.Popen[str]) -> Path:
    """The one run of a folder, once it is there."""
    while not (folder.exists() and any(folder.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    (run,) = folder.iterdir()
    return run


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> Path:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        for run in folder.iterdir() if folder.exists() else ():
            if steps(run) >= step:
                return run
        time.sleep(0.5)
    logs = [path.read_text()[-2000:] for path in folder.glob("*/logs/*.log")]
    raise AssertionError(f"no step {step}: {logs}")


INSTEAD = """
import sys
from launch.engines import ray_task
from launch.engines.scale import Scale

Scale.__init__.__defaults__ = (4.0,)  # seconds between two decisions

def argv(run, name, verb):
    last = name if verb == "actor" else ""
    command = [sys.executable, "-m", "tests.protocol.peers", verb, str(run)]
    return [*command, "tcp://*:0", str(run / "keys"), last]

ray_task.process_argv = argv
"""
"""Put into the launcher and Ray's workers: processes of the protocol, which need no engine."""


@pytest.fixture
def quick_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INSTEAD)
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    yield from _cluster(monkeypatch)


def test_processes_without_engines_survive_a_node(quick_cluster: Any, tmp_path: Path) -> None:
    """Everything but engine and trainer is real. The node of one actor is removed."""
    nodes = [_patiently(lambda: quick_cluster.add_node(num_cpus=1)) for _ in range(2)]
    runs = tmp_path / "runs"
    names = ("actor", "actor-1")
    with launched(runs, "--on", "ray", "--actors", "2", *SMALL) as process:

        def until(ready: Callable[[], bool], seconds: float = 300.0) -> None:
            end = time.monotonic() + seconds
            while not ready():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.2)

        run = run_folder(runs, process)
        until(lambda: all(len(sent_of(run, name)) > 20 for name in names))
        quick_cluster.remove_node(nodes[0], allow_graceful=False)
        _patiently(lambda: quick_cluster.add_node(num_cpus=1))
        told = [run / "ray" / f"{name}.json" for name in names]
        until(lambda: sorted(json.loads(path.read_text())["starts"] for path in told) == [1, 2])
        before = {name: len(sent_of(run, name)) for name in names}
        until(lambda: all(len(sent_of(run, name)) > before[name] + 20 for name in names))
        (run / "enough").touch()
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    crashes = json.loads(out.splitlines()[-1])["crashes"]
    assert list(crashes.values()) == [1], crashes
    all_came_once(run, names)


def test_actors_come_while_the_learner_waits_and_go_when_it_does_not(
    quick_cluster: Any, tmp_path: Path
) -> None:
    """Everything but engine and trainer is real; how long the learner waits is written here."""
    _patiently(lambda: quick_cluster.add_node(num_cpus=2))
    runs = tmp_path / "runs"
    with launched(runs, "--on", "ray", "--ray.max_actors", "2", *SMALL) as process:

        def until_waiting(share: float, ready: Callable[[], bool]) -> None:
            end = time.monotonic() + 300
            while not ready():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                with Metrics(run, "learner", tensorboard=False) as metrics:
                    metrics.log(0, seconds_step=1.0, seconds_wait_for_batch=share)
                time.sleep(0.5)

        def sends(name: str) -> int:
            return len(sent_of(run, name))

        def listed() -> set[str]:
            return set(json.loads((run / "launch.json").read_text())["processes"])

        run = run_folder(runs, process)
        until_waiting(0.1, lambda: sends("actor") > 20)
        assert listed() == {"learner", "actor"}
        until_waiting(0.8, lambda: sends("actor-1") > 20)
        assert listed() == {"learner", "actor", "actor-1"}
        until_waiting(0.0, lambda: listed() == {"learner", "actor"})
        before = sends("actor-1")
        until_waiting(0.8, lambda: sends("actor-1") > before + 20)
        (run / "enough").touch()
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors.count("the learner waits: actor-1 is added") == 2
    assert errors.count("the learner does not wait: actor-1 is given back") == 1
    assert json.loads(out.splitlines()[-1])["crashes"] == {}
    all_came_once(run, ("actor", "actor-1"))


def test_a_run_on_ray_is_seen_and_stopped_from_outside_and_goes_on(
    quick_cluster: Any, tmp_path: Path
) -> None:
    """Everything but engine and trainer is real."""
    _patiently(lambda: quick_cluster.add_node(num_cpus=1))

    def until_it_sends(process: subprocess.Popen[str]) -> Path:
        run = run_folder(tmp_path / "runs", process)
        end, before = time.monotonic() + 300, len(sent_of(run, "actor"))
        while len(sent_of(run, "actor")) < before + 20:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.2)
        now = status(run)
        assert (now["engine"], now["status"]) == ("ray", "running")
        assert now["processes"].keys() == {"learner", "actor"}
        assert all(how.startswith("running") for how in now["processes"].values()), now
        return run

    with launched(tmp_path / "runs", "--on", "ray", *SMALL) as process:
        run = until_it_sends(process)
        dynatok("stop", str(run))
        assert process.wait(60) == 0
    assert status(run)["status"] == "interrupted"
    with launched(None, "--resume", str(run)) as process:
        until_it_sends(process)
        dynatok("stop", "--now", str(run))
        assert process.wait(60) == 128 + signal.SIGTERM, "by its own doing, not Ray's"
    assert status(run)["status"] == "interrupted"


@pytest.mark.slow
def test_a_node_that_is_removed_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    first = _patiently(lambda: cluster.add_node(num_cpus=1))
    last = 40
    arguments = (*SMALL, "--learner.training.max_steps", str(last))
    with launched(tmp_path, "--on", "ray", *arguments) as process:
        run = wait_for_step(tmp_path, process, 3)
        told = json.loads((run / "ray" / "actor.json").read_text())
        assert told["starts"] == 1
        cluster.remove_node(first, allow_graceful=False)
        at = steps(run)
        _patiently(lambda: cluster.add_node(num_cpus=1))
        assert status(run)["status"] == "running"
        wait_for_step(tmp_path, process, at + 20)
        out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert result["learner_steps"] == last
    assert result["audit_mismatches"] == 0
    assert result["crashes"] == {"actor": 1}
    assert len(nothing_lost(run).trained) == 4 * last


@pytest.mark.slow
def test_a_learner_that_waits_gets_an_actor_more_and_a_stopped_run_goes_on(
    cluster: Any, tmp_path: Path
) -> None:
    _patiently(lambda: cluster.add_node(num_cpus=2))
    # One response at a time: the learner waits for it.
    slow = (*SMALL, "--actor.sessions", "1", "--ray.max_actors", "2")
    with launched(tmp_path, "--on", "ray", *slow) as process:
        run = wait_for_step(tmp_path, process, 1)
        end = time.monotonic() + 900
        while not any(one.startswith("actor-1.") for one in account(run).trained):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, (run / "logs" / "learner.log").read_text()[-2000:]
            time.sleep(1)
        assert set(status(run)["processes"]) == {"learner", "actor", "actor-1"}
        dynatok("stop", str(run))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "the learner waits: actor-1 is added" in errors
    assert status(run)["status"] == "interrupted"
    saved = latest(run / "checkpoints")
    assert saved is not None
    assert saved.state.step == steps(run) >= 1
    last = steps(run) + 5
    dynatok("launch", "--resume", str(run), "--learner.training.max_steps", str(last))
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["learner_steps"]) == ("finished", last)
    assert result["audit_mismatches"] == 0
    assert len(nothing_lost(run).trained) == 4 * last
