"""One run on this machine, from its configuration to its result.

stdout holds the result alone: one line of JSON, the last thing that is printed. What people
read on the way goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import environment, picture
from launch.config import (
    RunConfig,
    actor_configs,
    load_run,
    new_run_dir,
    resolve,
    write_configs,
)
from launch.decode import ConfigError
from launch.panel import display
from launch.supervisor import Command, supervise
from protocol.run import endpoint
from protocol.run.json_files import read_json


def launch(config: RunConfig, *, dry_run: bool = False) -> int:
    """Start a new run, watch it to the end, print the result; returns the exit code.

    Raises ConfigError before anything is started.
    """
    resolve(config, Path(config.dir))  # a busy port is no reason to leave a run folder
    return _run(config, new_run_dir(config), dry_run)


def resume(run_dir: Path, flags: Sequence[str] = (), *, dry_run: bool = False) -> int:
    """Resume a run that was stopped or failed, from its last checkpoint and its journals.

    Raises ConfigError where there is none, or where it has finished.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ConfigError(f"--resume: {run_dir} is no run folder: it has no config.yaml")
    config = load_run(path, flags)
    learner = read_json(run_dir / "learner.json")
    done = learner.get("learner_steps", 0)
    if learner.get("finished") and done >= (config.learner.training.get("max_steps") or 0):
        raise ConfigError(
            f"--resume: {run_dir} has finished its {done} steps; to train further, add "
            "--learner.training.max-steps with a larger number"
        )
    return _run(config, run_dir.resolve(), dry_run)


def _run(config: RunConfig, run_dir: Path, dry_run: bool) -> int:
    actor, learner = resolve(config, run_dir)
    actors = actor_configs(actor, config.actors)
    write_configs(run_dir, config, actors, learner)
    if dry_run:
        _say(f"wrote {run_dir}; each process can be started alone from its own file")
        print(json.dumps({"run_dir": str(run_dir), "status": "dry-run"}))
        return 0
    endpoint.forget_endpoint(run_dir)  # of a run that is resumed
    commands = [
        Command(
            name,
            [sys.executable, "-m", "launch.cli", verb, str(run_dir / f"{name}.yaml")],
            environment.for_child(verb, processes=1 + config.actors),
        )
        for name, verb in (("learner", "learner"), *((one.name, "actor") for one in actors))
    ]
    _say(f"run folder {run_dir}")
    max_steps = config.learner.training.get("max_steps")
    outcome = supervise(
        run_dir,
        commands,
        display(run_dir, max_steps),
        restarts=config.restarts,
        time_limit=config.time_limit,
    )
    endpoint.forget_endpoint(run_dir)
    drawn = picture.draw(run_dir)
    if outcome.message:
        _say(f"{outcome.status}: {outcome.message}")
    if outcome.status != "finished":
        _say(f"to resume from its last checkpoint: dynatok launch --resume {run_dir}")
    if drawn:
        _say(f"picture: {drawn}")
    print(json.dumps(read_json(run_dir / "result.json")), flush=True)
    return outcome.code


def _say(text: str) -> None:
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
