"""A run as one SLURM job: learner and actors are steps of it, watched from its batch script.

`submit` writes `RUN/run.sbatch` and hands it to sbatch. In the job, this module is the batch
script's last command: it starts the steps by srun, and the supervisor watches them as it watches
processes of one machine. A step that was cancelled or has crashed is started again alone. Some
seconds before the time limit SLURM sends SIGUSR1 here: the learner saves, and the job requeues
itself; started again, it resumes. A job that is preempted or loses a node is requeued by SLURM.

    python -m launch.engines.slurm RUN_DIR
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from actor.config import ActorConfig
from launch import environment
from launch.config import RunConfig, actor_configs, load_run, resolve
from launch.decode import ConfigError
from launch.engines.config import SlurmConfig, options
from launch.engines.local import process_argv, processes
from launch.engines.reachable import reachable
from launch.run import say, watch
from launch.supervisor import PATIENCE, Command, supervise
from protocol.run.json_files import read_json
from protocol.run.stop import asked_to_stop
from protocol.run.threads import NAMES

SCRIPT: Final = "run.sbatch"
_SIZES: Final = ("nodes", "N", "ntasks", "n", "cpus-per-task", "c", "exclusive", "ntasks-per-node")
_OTHERS: Final = 60
"""Seconds between the end of a learner's first node and the killing of the others."""
_DEADLINE: Final = 60.0
"""Seconds that a command of SLURM may take."""


def script(config: RunConfig, run_dir: Path) -> str:
    """The text of the batch script."""
    slurm = config.slurm
    _check(config)
    log = str(run_dir / "logs").replace("%", "%%") + "/slurm-%j.log"
    ours: dict[str, Any] = {
        "job-name": config.name,
        "output": log,
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR1@{slurm.save_seconds}",
    }
    given = {name.replace("_", "-"): value for name, value in slurm.sbatch.items()}
    if not slurm.actors_sbatch and not any(name in given for name in _SIZES):
        cpus = [_cpus(slurm.learner), _cpus(slurm.actor)]
        if slurm.learner_nodes > 1:
            ours["nodes"] = slurm.learner_nodes
        ours |= {"ntasks": slurm.learner_nodes + config.actors, "cpus-per-task": max(cpus)}
    lines = [f"#SBATCH {_quoted(one)}" for one in options(ours | given)]
    if slurm.actors_sbatch:
        lines.append("#SBATCH hetjob")
        lines += [f"#SBATCH {_quoted(one)}" for one in options(slurm.actors_sbatch)]
    command = [sys.executable, "-m", "launch.engines.slurm", str(run_dir)]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"# Written by `dynatok launch --on slurm`. Submit it again: sbatch {SCRIPT}",
            "set -e",
            f"cd {shlex.quote(os.getcwd())}",
            *_python_path(),
            *slurm.setup,
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def _check(config: RunConfig) -> None:
    """Raises ConfigError for sizes that contradict each other."""
    nodes, ranks = config.slurm.learner_nodes, config.learner.ranks
    if ranks % nodes:
        raise ConfigError(
            f"slurm.learner.nodes is {nodes}, and learner.ranks, over all of them, is {ranks}; "
            f"write a multiple, such as {nodes * max(1, ranks // nodes)}"
        )
    job = config.slurm.sbatch.get("nodes", config.slurm.sbatch.get("N"))
    if isinstance(job, int) and job < nodes:
        raise ConfigError(f"slurm.sbatch.nodes is {job}, but slurm.learner.nodes is {nodes}")
    parallel = config.actor.engine.get("tensor_parallel_size", 1)
    parallel *= config.actor.engine.get("pipeline_parallel_size", 1)
    for name in ("gpus-per-task", "gpus_per_task", "gpus-per-node", "gpus_per_node", "gpus"):
        given = str(config.slurm.actor.get(name, "")).rpartition(":")[2]
        if given.isdecimal() and int(given) < parallel:
            raise ConfigError(
                f"slurm.actor.{name} is {given}, but the engine of an actor takes {parallel} "
                f"(actor.engine.tensor_parallel_size); write {parallel}"
            )


def _quoted(option: str) -> str:
    """sbatch takes what stands between double quotes as it is, and knows no way to write one."""
    if not re.search(r"\s", option):
        return option
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"'


def _python_path() -> list[str]:
    """A checkout that is not installed is found in the job, too."""
    found = os.environ.get("PYTHONPATH")
    return [f"export PYTHONPATH={shlex.quote(found)}"] if found else []


def submit(run_dir: Path) -> str:
    """Hand the script to sbatch; the number of the job. Raises ConfigError with sbatch's words."""
    out = ask("sbatch", "--parsable", str(run_dir / SCRIPT), environment=outside_of_jobs())
    return out.partition(";")[0]


def outside_of_jobs() -> dict[str, str]:
    """This environment without what a job that we may be in said to its own processes."""
    ours = ("SLURM_CONF", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in os.environ.items()
        if name in ours or not name.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }


def ask(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command of SLURM prints. Raises ConfigError with its own last words."""
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"there is no {command[0]} here: log in to a machine from which jobs are submitted"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DEADLINE, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} did not answer within {_DEADLINE:g} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        words = "; ".join(lines) or f"{command[0]}: exit code {done.returncode}"
        raise ConfigError(words)
    return done.stdout.strip()


def state_of(job: str) -> dict[str, str]:
    """What SLURM says of a job: `JobState`, `Reason`, `NodeList`, ...; empty: it has forgotten it.

    Raises ConfigError where SLURM cannot be asked.
    """
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job)
    except ConfigError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    first = text.splitlines()[0] if text else ""
    return dict(re.findall(r"(\S+?)=(\S*)", first))


def commands(
    run_dir: Path, config: SlurmConfig, actors: Sequence[ActorConfig], ranks: int = 1
) -> list[Command]:
    """The learner, of so many ranks, and its actors as steps of the job that this process is in."""
    found = []
    for name, verb in processes(actors):
        learner = verb == "learner"
        given = {
            key.replace("_", "-"): value
            for key, value in (config.learner if learner else config.actor).items()
            if key not in ("nodes", "N")
        }
        nodes = config.learner_nodes if learner else 1
        step: dict[str, Any] = {
            "job-name": name,
            "nodes": nodes,
            "ntasks": nodes,
            "exact": True,
            "mem": "0",
            "kill-on-bad-exit": "1",
            "unbuffered": True,
        }
        if nodes > 1:
            # A task is the agent of one node, and says itself what became of its ranks: killed, it
            # could not.
            step |= {"ntasks-per-node": 1, "kill-on-bad-exit": "0", "wait": _OTHERS}
        if config.actors_sbatch:
            step["het-group"] = 0 if learner else 1
        argv = ["srun", *options(step | given), *config.container]
        argv += process_argv(run_dir, name, verb)
        found.append(
            Command(
                name,
                argv,
                _environment(verb, given, ranks // nodes if learner else 1),
                # srun answers SIGTERM by killing its tasks, and passes SIGUSR1 on to them.
                stop_signal=signal.SIGUSR1,
                rejoins=not learner,
            )
        )
    return found


def _environment(verb: str, given: Mapping[str, Any], ranks: int) -> dict[str, str]:
    """A step's own cores are not those of this process: unless it is told, it looks itself.

    `ranks`: of one task, which share its cores.
    """
    found = environment.for_child(verb)
    for name in NAMES:
        if name not in os.environ:
            cpus = _cpus(given) // ranks
            found.pop(name, None)
            if cpus > 1:
                found[name] = str(cpus)
    return found


def _cpus(step: Mapping[str, Any]) -> int:
    return int(step.get("cpus-per-task", step.get("cpus_per_task", step.get("c", 1))))


def run_in_job(run_dir: Path, job: str) -> int:
    """Watch the run in its job; requeue it where its time is over. The batch script's exit code."""
    config = load_run(run_dir / "config.yaml")
    actor, learner = resolve(reachable(config, run_dir), run_dir)
    actors = actor_configs(actor, config.actors)
    before = _steps(run_dir)
    outcome = watch(
        run_dir,
        config,
        {"engine": "slurm", "job": job},
        lambda display: supervise(
            run_dir,
            commands(run_dir, config.slurm, actors, learner.ranks),
            display,
            restarts=config.restarts,
            time_limit=config.time_limit,
            saving=max(1.0, config.slurm.save_seconds - 10.0),
            patience=max(PATIENCE, config.learner.stop_grace + 1),
        ),
    )
    request = asked_to_stop(run_dir)
    if request is None or not request.again or outcome.status != "interrupted":
        return outcome.code
    if _steps(run_dir) <= before:
        say(
            f"not requeued: no step was made in this job's time (still at step {before}); ask for "
            "more in slurm.sbatch.time"
        )
        return 1
    say(f"the time limit is near: requeueing job {job} to go on from step {_steps(run_dir)}")
    try:
        ask("scontrol", "requeue", job)
    except ConfigError as error:
        say(f"{error}; to resume: dynatok launch --resume {run_dir}")
        return 1
    return 0


def _steps(run_dir: Path) -> int:
    return int(read_json(run_dir / "learner.json").get("learner_steps") or 0)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """In the job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or len(arguments) != 1:
        print("usage, in a SLURM job: python -m launch.engines.slurm RUN_DIR", file=sys.stderr)
        return 2
    try:
        return run_in_job(Path(arguments[0]), job)
    except ConfigError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
