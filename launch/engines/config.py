"""What a run says about the cluster that it may run on. Options keep the names they have there."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_OURS = ("ntasks", "n", "ntasks-per-node", "het-group", "export", "chdir", "job-name")
"""Of a step: decided by what runs in it."""


class SlurmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok launch CONFIG --on slurm`."""

    sbatch: dict[str, Any] = {}
    """Options of the job, as sbatch knows them: `{partition: gpu, account: lab, time: "8:00:00"}`.
    `true` stands for an option without a value, a list for one that is given several times."""
    learner: dict[str, Any] = {}
    """srun's options of the learner's step: `{nodes: 2, gpus-per-node: 4, cpus-per-task: 32}`. Its
    ranks (`learner.ranks`) are shared out to its nodes; a task is what runs on one of them."""
    actor: dict[str, Any] = {}
    """srun's options of each actor's step: `{gpus-per-task: 1, cpus-per-task: 8}`."""
    actors_sbatch: dict[str, Any] = {}
    """Where actors need nodes of another kind: the options of a second component of the job, which
    then is a heterogeneous one. All actors run there."""
    setup: list[str] = []
    """Lines of shell before anything is started: `[module load cuda, source env.sh]`."""
    container: list[str] = []
    """What learner and actors are started through: `[apptainer, exec, --nv, dynatok.sif]`."""
    save_seconds: int = 120
    """Seconds before the time limit at which the learner saves and the job requeues itself."""

    def __post_init__(self) -> None:
        if self.save_seconds < 1:
            raise ValueError(f"slurm.save_seconds is {self.save_seconds}; write 1 or more")
        for section in ("sbatch", "learner", "actor", "actors_sbatch"):
            for name in getattr(self, section):
                if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                    raise ValueError(f"slurm.{section}: '{name}' is no option's name")
                if section not in ("learner", "actor"):
                    continue
                if name in ("nodes", "N") and section == "actor":
                    raise ValueError(f"slurm.actor.{name}: an actor has one node; leave it out")
                if name.replace("_", "-") in _OURS:
                    raise ValueError(f"slurm.{section}.{name} is filled in for each step")
        if not (isinstance(self.learner_nodes, int) and self.learner_nodes > 0):
            raise ValueError(
                f"slurm.learner.nodes is {self.learner_nodes!r}; write the number of its nodes"
            )
        if isinstance(time := self.sbatch.get("time"), int):
            raise ValueError(
                f"slurm.sbatch.time is the number {time} (YAML takes 1:30:00 for 5400); write it "
                'in quotes: "1:30:00"'
            )
        if "signal" in self.sbatch:
            raise ValueError("slurm.sbatch.signal is filled in; write slurm.save_seconds instead")

    @property
    def learner_nodes(self) -> int:
        """Machines that the learner's ranks are on."""
        found: int = self.learner.get("nodes", self.learner.get("N", 1))
        return found


class RayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dynatok launch CONFIG --on ray`."""

    address: str = ""
    """Of the cluster (`auto`, HOST:PORT); empty: `RAY_ADDRESS`, or
    a cluster of this machine alone, which ends with the run."""
    learner: dict[str, float] = msgspec.field(default_factory=lambda: {"CPU": 1.0})
    """What the learner takes of a node, as Ray counts it: `{CPU: 16, GPU: 1}`."""
    actor: dict[str, float] = msgspec.field(default_factory=lambda: {"CPU": 1.0})
    """What each actor takes of a node; a tensor-parallel one several GPUs: `{CPU: 8, GPU: 2}`."""
    max_actors: int = 0
    """Where this is above `actors`, actors are added, up to so many, while the learner waits for
    trajectories, and given back when it does not."""

    def __post_init__(self) -> None:
        for section in ("learner", "actor"):
            for name, number in getattr(self, section).items():
                if not number >= 0:
                    raise ValueError(f"ray.{section}.{name} is {number}; write 0 or more")
        if self.max_actors < 0:
            raise ValueError(f"ray.max_actors is {self.max_actors}; write 0 (off) or more")
        if self.address.startswith("ray://"):
            raise ValueError(
                f"ray.address '{self.address}' is Ray Client, which cannot be used; write auto "
                "on a machine of the cluster, or HOST:PORT of its head (6379)"
            )


def options(values: dict[str, Any]) -> list[str]:
    """As they are written on a command line: `--partition=gpu`, `--exclusive`, `-C a100`."""
    found = []
    for name, value in values.items():
        flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                found.append(flag)
            elif one is not False and one is not None:
                found.append(f"{flag}={one}" if len(name) > 1 else f"{flag}{one}")
    return found
