"""The processes of a run on this machine: plain children, with an equal share of the cores each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from actor.config import ActorConfig
from launch import environment
from launch.supervisor import Command


def process_argv(run_dir: Path, name: str, verb: str) -> list[str]:
    """What starts one process from its file of the run folder, by this environment's Python."""
    return [sys.executable, "-m", "launch.cli", verb, str(run_dir / f"{name}.yaml")]


def processes(actors: Sequence[ActorConfig]) -> list[tuple[str, str]]:
    """(name, verb) of every process of a run; the learner first."""
    return [("learner", "learner"), *((one.name, "actor") for one in actors)]


def commands(run_dir: Path, actors: Sequence[ActorConfig], ranks: int = 1) -> list[Command]:
    """The learner, of so many ranks, and its actors."""
    found = processes(actors)
    return [
        Command(
            name,
            process_argv(run_dir, name, verb),
            environment.for_child(verb, processes=len(found) - 1 + ranks),
        )
        for name, verb in found
    ]
