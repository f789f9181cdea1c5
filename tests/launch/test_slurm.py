"""`--on slurm` under a real SLURM of three nodes here, with the real actor and learner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from learner.online.checkpoint import latest
from protocol.run.trace import account
from tests.launch.running import CONFIG, all_came_once, nothing_lost, sent_of, steps
from tests.launch.slurm_cluster import missing, slurm_cluster
from tests.protocol.peers import read

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing()), reason=f"SLURM cannot be run here: {missing()}"),
]

SMALL = (
    *("--learner.trajectories_per_step", "4", "--learner.training.save_steps", "1000"),
    *("--learner.max_seconds", "0", "--actor.evaluation.enabled", "false"),
    *("--slurm.save_seconds", "110"),
)
"""No checkpoint but the ones that are asked for."""


def on_nodes(count: int) -> tuple[str, ...]:
    """A task on each of so many."""
    return ("--slurm.sbatch.nodes", str(count), "--slurm.sbatch.ntasks", str(count))


class Cluster:
    """Commands that are run on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**environment, "OMP_NUM_THREADS": "1"}

    def __call__(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done

    def dynatok(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self(sys.executable, "-m", "launch.cli", *arguments, code=code)

    def state(self, run: Path) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", "status", str(run)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return json.loads(done.stdout.splitlines()[-1])

    def wait(self, run: Path, ready: Callable[[dict], bool], seconds: float = 900.0) -> dict:
        end = time.monotonic() + seconds
        while not ready(state := self.state(run)):
            log = "".join(path.read_text()[-3000:] for path in run.glob("logs/*.log"))
            assert state["status"] in ("running", "waiting", "submitted"), (state, log)
            assert time.monotonic() < end, (state, log)
            time.sleep(1)
        return state


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster(nodes=3) as environment:
        yield Cluster(environment)


def minutes_of(cluster: Cluster, job: str) -> int:
    """How long a job has run, in full minutes."""
    ran = cluster("squeue", "--noheader", "--format=%M", f"--jobs={job}").stdout
    return int(ran.strip().rpartition(":")[0].rpartition(":")[2] or 0)


def step_of(cluster: Cluster, job: str, name: str) -> str:
    """The number of the step of that name: `7.2`."""
    listed = cluster("squeue", "--steps", "--noheader", "--format=%i %j", f"--jobs={job}").stdout
    return next(line.split()[0] for line in listed.splitlines() if line.endswith(f" {name}"))


def test_what_the_scheduler_refuses_is_said_in_its_own_words(
    cluster: Cluster, tmp_path: Path
) -> None:
    for flags, words in (
        (("--slurm.sbatch.partition", "nope"), "Invalid partition name specified"),
        (("--slurm.sbatch.partition", "closed"), "Invalid account or account/partition"),
        (("--slurm.sbatch.nodes", "9"), "Node count specification invalid"),
        (("--slurm.sbatch.no-such-option", "1"), "unrecognized option"),
    ):
        done = cluster.dynatok(
            "launch", CONFIG, "--on", "slurm", "--dir", str(tmp_path), *flags, code=2
        )
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert list(tmp_path.iterdir()) == [], "what was refused leaves no run folder"


def test_a_job_that_waits_is_said_to_and_can_be_stopped(cluster: Cluster, tmp_path: Path) -> None:
    held = ("--slurm.sbatch.begin", "now+1hour")
    cluster.dynatok("launch", CONFIG, "--on", "slurm", "--dir", str(tmp_path), *held)
    (run,) = tmp_path.iterdir()
    done = cluster.dynatok("status", str(run))
    assert "Reason=BeginTime" in done.stdout
    assert cluster.state(run)["status"] == "waiting"
    again = cluster.dynatok("launch", "--resume", str(run), code=2)
    assert "is waiting already (slurm, job" in again.stderr
    cluster.dynatok("stop", str(run))
    assert cluster.state(run)["status"] == "interrupted"


INSTEAD = """
import sys
from launch.engines import local

def argv(run, name, verb):
    last = name if verb == "actor" else ""
    command = [sys.executable, "-m", "tests.protocol.peers", verb, str(run)]
    return [*command, "tcp://*:0", str(run / "keys"), last]

local.process_argv = argv
"""
"""Put into the job: processes of the protocol alone, which need no engine."""


@pytest.fixture
def protocol_alone(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but engine and trainer is real."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INSTEAD)
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    monkeypatch.setitem(cluster.environment, "PYTHONPATH", path)


@pytest.mark.usefixtures("protocol_alone")
def test_actors_have_nodes_of_another_kind_and_the_gpus_that_they_ask_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    cluster.dynatok(
        *("launch", CONFIG, "--on", "slurm", "--dir", str(runs), "--actors", "2"),
        *("--slurm.sbatch", "{nodelist: n0, ntasks: 1}"),
        *("--slurm.actors_sbatch", "{nodelist: 'n[1-2]', nodes: 2, ntasks: 2, gres: 'gpu:2'}"),
        *("--slurm.actor.gpus-per-task", "2", "--actor.engine.tensor_parallel_size", "2"),
    )
    (run,) = runs.iterdir()
    names = ("actor", "actor-1")

    cluster.wait(run, lambda state: all(len(sent_of(run, name)) > 20 for name in names))
    began = [read(run, name)[0] for name in names]
    assert {one["SLURMD_NODENAME"] for one in began} == {"n1", "n2"}
    assert [one["SLURM_GPUS_ON_NODE"] for one in began] == ["2", "2"]
    cluster.dynatok("stop", str(run))
    assert cluster.state(run)["status"] == "interrupted"


@pytest.mark.usefixtures("protocol_alone")
def test_processes_without_engines_survive_the_time_limit_and_a_cancelled_step(
    cluster: Cluster, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    cluster.dynatok(
        *("launch", CONFIG, "--on", "slurm", "--dir", str(runs), "--actors", "2"),
        *("--slurm.sbatch.time", '"20"', "--slurm.save_seconds", "110"),
    )
    (run,) = runs.iterdir()
    job = cluster.state(run)["job"]
    names = ("actor", "actor-1")

    def both_send_more(state: dict) -> bool:
        return all(len(sent_of(run, name)) > before[name] + 20 for name in names)

    before = dict.fromkeys(names, 0)
    cluster.wait(run, both_send_more)
    limit = f"timelimit={minutes_of(cluster, job) + 2}"
    cluster("scontrol", "update", f"jobid={job}", limit)
    cluster.wait(run, lambda state: state["status"] == "waiting")
    cluster("scontrol", "update", f"jobid={job}", "timelimit=20")
    before = {name: len(sent_of(run, name)) for name in names}
    cluster.wait(run, both_send_more)

    since = time.monotonic()
    cluster("scancel", step_of(cluster, job, "actor-1"))
    before = {name: len(sent_of(run, name)) for name in names}
    cluster.wait(run, both_send_more)
    # The other one goes on while it is gone.
    times = [since, *(at for at in sent_of(run, "actor-1", "at") if at > since)]
    _, away, back = max((b - a, a, b) for a, b in pairwise(times))
    assert sum(away < at < back for at in sent_of(run, "actor", "at")) > 5
    (run / "enough").touch()
    cluster.wait(run, lambda state: state["status"] == "finished")
    log = (run / "logs" / f"slurm-{job}.log").read_text()
    assert "requeueing job" in log
    assert json.loads((run / "result.json").read_text())["crashes"] == {"actor-1": 1}, log
    all_came_once(run, names)


@pytest.mark.slow
def test_stopped_resumed_out_of_time_and_short_of_an_actor_nothing_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "runs with blanks"
    cluster.dynatok(
        *("launch", CONFIG, "--on", "slurm", "--dir", str(folder), *SMALL, *on_nodes(2)),
        *("--learner.training.max_steps", "5000", "--slurm.sbatch.time", '"20"'),
    )
    (run,) = folder.iterdir()
    assert (run / "keys" / "learner.key_secret").stat().st_mode & 0o777 == 0o600

    # Asked to stop: the step that was made last is saved, and the job ends for good.
    cluster.wait(run, lambda state: steps(run) >= 2)
    cluster.dynatok("stop", str(run))
    state = cluster.state(run)
    assert state["status"] == "interrupted"
    saved = latest(run / "checkpoints")
    assert saved is not None
    assert saved.state.step == steps(run) >= 2

    # Resumed, with too little time left: it saves, requeues itself, and goes on.
    cluster.dynatok("launch", "--resume", str(run))
    job = cluster.state(run)["job"]
    assert job != state["job"]
    resumed_at = saved.state.step
    cluster.wait(run, lambda state: steps(run) >= resumed_at + 2)
    limit = f"timelimit={minutes_of(cluster, job) + 2}"
    cluster("scontrol", "update", f"jobid={job}", limit)
    cluster.wait(run, lambda state: state["status"] == "waiting")
    requeued_at = steps(run)
    saved = latest(run / "checkpoints")
    assert saved is not None
    assert saved.state.step == requeued_at
    cluster("scontrol", "update", f"jobid={job}", "timelimit=20")

    # The same job, started again; and one step of it is cancelled.
    cluster.wait(run, lambda state: steps(run) >= requeued_at + 2)
    cluster("scancel", step_of(cluster, job, "actor"))
    cancelled_at = len(account(run).sent)
    cluster.wait(run, lambda state: len(account(run).sent) > cancelled_at + 8)
    cancelled_at = steps(run)
    cluster.wait(run, lambda state: steps(run) >= cancelled_at + 2)
    cluster.dynatok("stop", str(run))
    log = (run / "logs" / f"slurm-{job}.log").read_text()
    assert "requeueing job" in log
    assert log.count("actor exited with code") == 1, log
    assert "starting it again" in log
    assert json.loads((run / "result.json").read_text())["crashes"] == {"actor": 1}

    # To its end.
    last = steps(run) + 10
    cluster.dynatok("launch", "--resume", str(run), "--learner.training.max_steps", str(last))
    cluster.wait(run, lambda state: state["status"] == "finished")
    result = json.loads((run / "result.json").read_text())
    assert result["learner_steps"] == last
    assert result["audit_mismatches"] == 0
    assert len(nothing_lost(run).trained) == 4 * last
    assert os.environ.get("SLURM_CONF") is None, "nothing of it stays in this process"


@pytest.mark.slow
def test_a_learner_on_two_nodes_trains_stops_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    last = 8
    cluster.dynatok(
        *("launch", CONFIG, "--on", "slurm", "--dir", str(tmp_path), *SMALL, *on_nodes(3)),
        *("--learner.ranks", "2", "--slurm.learner.nodes", "2"),
        *("--learner.training.max_steps", str(last), "--slurm.sbatch.time", '"20"'),
    )
    (run,) = tmp_path.iterdir()
    cluster.wait(run, lambda state: steps(run) >= 2)
    cluster.dynatok("stop", str(run))
    assert cluster.state(run)["status"] == "interrupted"
    saved = latest(run / "checkpoints")
    assert saved is not None
    assert saved.state.step == steps(run) >= 2
    assert saved.state.ranks == 2
    cluster.dynatok("launch", "--resume", str(run))
    cluster.wait(run, lambda state: state["status"] == "finished")
    assert (run / "logs" / "rank-1.log").exists()
    result = json.loads((run / "result.json").read_text())
    assert result["learner_steps"] == last
    assert result["audit_mismatches"] == 0
    assert result["crashes"] == {}
    assert len(nothing_lost(run).trained) == 4 * last
