"""One run, from its configuration to its result.

stdout holds the result alone: one line of JSON, the last thing that is printed. What people
read on the way goes to stderr.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import control, picture, result
from launch.config import (
    RunConfig,
    actor_configs,
    load_run,
    new_run_dir,
    resolve,
    write_configs,
)
from launch.decode import ConfigError
from launch.engines import local
from launch.engines.reachable import reachable
from launch.panel import display
from launch.supervisor import PATIENCE, Display, Outcome, supervise
from protocol.run import endpoint
from protocol.run.json_files import read_json


def launch(config: RunConfig, *, on: str = "local", dry_run: bool = False) -> int:
    """Start a new run on this machine (`local`) or as a job (`slurm`), and print the result.

    Returns the exit code.

    Raises ConfigError before anything is started.
    """
    resolve(config, Path(config.dir))  # a busy port is no reason to leave a run folder
    run_dir = new_run_dir(config)
    try:
        return _run(config, run_dir, on, dry_run)
    except ConfigError:
        shutil.rmtree(run_dir, ignore_errors=True)  # nothing was started
        raise


def resume(
    run_dir: Path, flags: Sequence[str] = (), *, on: str | None = None, dry_run: bool = False
) -> int:
    """Resume a run that was stopped or failed, from its last checkpoint and its journals.

    Raises ConfigError where there is none, where it has finished, or where it still runs.
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
    run_dir = run_dir.resolve()
    control.refuse_running(run_dir)
    return _run(config, run_dir, on or control.engine_of(run_dir), dry_run)


def _run(config: RunConfig, run_dir: Path, on: str, dry_run: bool) -> int:
    if on == "slurm":
        return _submit(config, run_dir.resolve(), dry_run)
    if on == "ray":
        run_dir = run_dir.resolve()
    actor, learner = resolve(config if on == "local" else reachable(config, run_dir), run_dir)
    most = max(config.actors, config.ray.max_actors if on == "ray" else 0)
    actors = actor_configs(actor, most)
    write_configs(run_dir, config, actors, learner)
    if dry_run:
        say(f"wrote {run_dir}; each process can be started alone from its own file")
        print(json.dumps({"run_dir": str(run_dir), "status": "dry-run"}))
        return 0
    if on == "ray":
        from launch.engines.ray import run_on_ray

        return watch(
            run_dir,
            config,
            {"engine": "ray"},
            lambda display: run_on_ray(run_dir, config, actors, display),
        ).code
    return watch(
        run_dir,
        config,
        {"engine": "local"},
        lambda display: supervise(
            run_dir,
            local.commands(run_dir, actors, learner.ranks),
            display,
            restarts=config.restarts,
            time_limit=config.time_limit,
            patience=max(PATIENCE, config.learner.stop_grace + 1),
        ),
    ).code


def _submit(config: RunConfig, run_dir: Path, dry_run: bool) -> int:
    from launch.engines import slurm

    actor, learner = resolve(reachable(config, run_dir), run_dir)
    write_configs(run_dir, config, actor_configs(actor, config.actors), learner)
    path = run_dir / slurm.SCRIPT
    path.write_text(slurm.script(config, run_dir), encoding="utf-8")
    (run_dir / "logs").mkdir(exist_ok=True)  # sbatch makes no folder for its log
    if dry_run:
        say(f"wrote {path}; submit it with sbatch, or start each process alone from its own file")
        print(json.dumps({"run_dir": str(run_dir), "script": str(path), "status": "dry-run"}))
        return 0
    job = slurm.submit(run_dir)
    control.write(run_dir, {"engine": "slurm", "job": job, "status": "submitted"})
    say(f"job {job} is submitted; dynatok status {run_dir}")
    print(json.dumps({"run_dir": str(run_dir), "job": job, "status": "submitted"}))
    return 0


def watch(
    run_dir: Path,
    config: RunConfig,
    about: Mapping[str, Any],
    start: Callable[[Display], Outcome],
) -> Outcome:
    """Have `start` run the processes to their end, show them meanwhile, and print the result.

    `about`: what `RUN/launch.json` says of the engine.
    """
    endpoint.forget_endpoint(run_dir)  # of a run that is resumed
    say(f"run folder {run_dir}")
    max_steps = config.learner.training.get("max_steps")
    record = control.Record(display(run_dir, max_steps), run_dir, about)
    outcome = start(record)
    endpoint.forget_endpoint(run_dir)
    record.ended(outcome)
    drawn = picture.draw(run_dir)
    if outcome.message:
        say(f"{outcome.status}: {outcome.message}")
    if outcome.status != "finished":
        say(f"to resume from its last checkpoint: dynatok launch --resume {run_dir}")
    if drawn:
        say(f"picture: {drawn}")
    if shown := result.evidence(run_dir):
        say(shown)
    print(json.dumps(read_json(run_dir / "result.json")), flush=True)
    return outcome


def say(text: str) -> None:
    """To people."""
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
