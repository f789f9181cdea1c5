"""One run on this machine, from its configuration to its result.

stdout holds the result alone: one line of JSON, the last thing that is printed. What people
read on the way goes to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launch import environment, picture, result
from launch.config import RunConfig, new_run_dir, resolve, write_configs
from launch.panel import display
from launch.supervisor import Command, supervise


def launch(config: RunConfig, *, dry_run: bool = False) -> int:
    """Start actor and learner, watch them to the end, print the result; returns the exit code.

    Raises ConfigError before anything is started.
    """
    resolve(config, Path(config.dir))  # a busy port is no reason to leave a run folder
    run_dir = new_run_dir(config)
    actor, learner = resolve(config, run_dir)
    write_configs(run_dir, config, actor, learner)
    if dry_run:
        _say(f"wrote {run_dir}; each process can be started alone from its own file")
        print(json.dumps({"run_dir": str(run_dir), "status": "dry-run"}))
        return 0
    commands = [
        Command(
            name,
            [sys.executable, "-m", "launch.cli", name, str(run_dir / f"{name}.yaml")],
            environment.for_child(name),
        )
        for name in ("learner", "actor")
    ]
    _say(f"run folder {run_dir}")
    max_steps = config.learner.training.get("max_steps")
    outcome = supervise(
        run_dir, commands, display(run_dir, max_steps), time_limit=config.time_limit
    )
    drawn = picture.draw(run_dir)
    if outcome.message:
        _say(f"{outcome.status}: {outcome.message}")
    if drawn:
        _say(f"picture: {drawn}")
    print(json.dumps(result.read_json(run_dir / "result.json")), flush=True)
    return outcome.code


def _say(text: str) -> None:
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
