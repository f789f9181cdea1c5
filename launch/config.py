"""What a run is: one file for people, one resolved file per process.

The launcher fills what both processes must agree on (run folder, run id, model, seed, endpoint)
into their sections, so these are written once, at the top. `RUN/config.yaml` can be launched
again; `RUN/actor.yaml` and `RUN/learner.yaml` start one process alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from actor.config import ActorConfig
from dynatok_online.objectives.written import objective_of
from launch.decode import ConfigError, all_fields, check_keys, decode, merge, parse_flags, read_yaml
from launch.engines.config import RayConfig, SlurmConfig
from launch.precision import settled
from learner.config import LearnerConfig, check_hindsight
from learner.lora import engine_arguments, rank_of
from protocol.config import ProtocolConfig
from protocol.run.run_folder import make_run_folder
from protocol.weights.store import check_store

FILLED = ("run_dir", "run_id", "model", "seed", "endpoint", "protocol")
"""Fields of a process's section that come from the run."""

MAX_ROW_TOKENS = 16384
"""What `learner.training.max_row_tokens` is where nothing is written; asking the trainer for it
would import torch."""

T = TypeVar("T", bound=msgspec.Struct)


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One learner and its actors on this machine."""

    name: str = "run"
    """First part of the run folder's name."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of everything that is drawn."""
    model: str = "tiny"
    """`tiny` (the embedded model), a folder, or a name on the model hub."""
    time_limit: float = 0.0
    """Seconds after which the run is stopped as failed; 0: none."""
    actors: int = 1
    """Actor processes. Each has a seed of its own; the first one evaluates."""
    restarts: int = 3
    """How often in a row a process may crash and be restarted before the run fails; 0: never."""
    actor: ActorConfig = ActorConfig()
    """The generating process."""
    learner: LearnerConfig = msgspec.field(default_factory=LearnerConfig)
    """The training process."""
    protocol: ProtocolConfig = ProtocolConfig()
    """How the two talk."""
    slurm: SlurmConfig = SlurmConfig()
    """What to ask SLURM for, with `--on slurm`."""
    ray: RayConfig = msgspec.field(default_factory=RayConfig)
    """What to ask Ray for, with `--on ray`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name is {self.name!r}; it becomes part of a folder's name: write letters, "
                "digits, '.', '_' and '-'"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; write 0 or more")
        if self.actors < 1:
            raise ValueError(f"actors is {self.actors}; write 1 or more")
        if self.restarts < 0:
            raise ValueError(f"restarts is {self.restarts}; write 0 (never) or more")
        if self.time_limit < 0:
            raise ValueError(f"time_limit is {self.time_limit}; write 0 (none) or more")
        self._check_together()

    def _check_together(self) -> None:
        """What each section allows for itself and both together do not."""
        per_step, credits = self.learner.trajectories_per_step, self.protocol.credits
        if per_step > self.actors * credits:
            raise ValueError(
                f"learner.trajectories_per_step is {per_step}, but protocol.credits ({credits}) "
                f"lets {self.actors} actors have only {self.actors * credits} trajectories that "
                f"are not trained on; write protocol.credits {-(-per_step // self.actors)} or more"
            )
        made = objective_of(self.learner.objective)
        if "groups" in made.needs and self.actor.responses_per_task < 2:
            raise ValueError(
                f"learner.objective {made.of_need('groups')} compares several responses to one "
                "task, and actor.responses_per_task is 1; write 2 or more, such as 4"
            )
        check_hindsight("actor.", self.learner.objective, self.actor.reuse, self.actor.placement)
        self._check_adapters()
        store = self.protocol.weights_store
        if self.learner.weight_transport == "store":
            check_store(store)
        elif store:
            raise ValueError(
                f"protocol.weights_store is '{store}', but learner.weight_transport is "
                f"{self.learner.weight_transport}; write store, or no address"
            )
        longest = self.actor.engine.get("max_model_len", 0)
        row = self.learner.training.get("max_row_tokens", MAX_ROW_TOKENS)
        if isinstance(longest, int) and isinstance(row, int) and longest > row:
            raise ValueError(
                f"actor.engine.max_model_len is {longest}, but a row of the learner holds {row} "
                f"tokens, and a pass must fit into one; write learner.training.max_row_tokens "
                f"{longest}, or a smaller max_model_len"
            )
        for section, journal_bytes in (
            ("actor", self.actor.journal_bytes),
            ("learner", self.learner.journal_bytes),
        ):
            if journal_bytes < 2 * self.protocol.max_message_bytes:
                raise ValueError(
                    f"{section}.journal_bytes is {journal_bytes}, less than two trajectories of "
                    f"protocol.max_message_bytes ({self.protocol.max_message_bytes}); write more, "
                    "or a smaller protocol.max_message_bytes"
                )

    def _check_adapters(self) -> None:
        if self.learner.weight_sync != "adapter":
            return
        if self.actor.on_weights != "restart":
            raise ValueError(
                f"actor.on_weights is {self.actor.on_weights}, but with learner.weight_sync "
                "adapter a pass keeps the adapter that it began with; write actor.on_weights "
                "restart, or learner.weight_sync merged"
            )
        needed = rank_of(self.learner.lora)
        most = self.actor.engine.get("max_lora_rank", needed)
        if not isinstance(most, int) or most < needed:
            raise ValueError(
                f"actor.engine.max_lora_rank is {most!r}, but learner.lora has rank {needed}; "
                "leave it out"
            )
        if not self.actor.engine.get("enable_lora", True):
            raise ValueError(
                "actor.engine.enable_lora is off, but learner.weight_sync is adapter; leave it out"
            )


def load_run(path: Path, flags: Sequence[str] = ()) -> RunConfig:
    """The run in a YAML file, with command-line overrides. Raises ConfigError."""
    raw = read_yaml(path)
    check_keys(raw, RunConfig, str(path))
    _refuse_filled(raw, str(path))
    config = decode(raw, RunConfig, str(path))
    if flags:
        over = parse_flags(flags, RunConfig)
        _refuse_filled(over, "command line")
        config = decode(merge(_plain(config), over), RunConfig, "command line")
    return settled(config)


def load_process(path: Path, into: type[T], flags: Sequence[str] = ()) -> T:
    """The resolved config of one process, with overrides. Raises ConfigError."""
    config = decode(read_yaml(path), into, str(path))
    if flags:
        config = decode(merge(_plain(config), parse_flags(flags, into)), into, "command line")
    return settled(config)


def _refuse_filled(raw: dict[str, Any], source: str) -> None:
    for section in ("actor", "learner"):
        value = raw.get(section)
        for key in FILLED:
            if isinstance(value, dict) and key in value:
                top = {"endpoint": "protocol.endpoint", "run_dir": "dir", "run_id": "name"}
                raise ConfigError(
                    f"{source}: '{section}.{key}' is filled in for each run; "
                    f"write '{top.get(key, key)}' instead"
                )


def new_run_dir(config: RunConfig) -> Path:
    """A fresh folder `DIR/NAME-DATE-TIME`, made here. Raises ConfigError."""
    try:
        return make_run_folder(Path(config.dir), config.name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def resolve(config: RunConfig, run_dir: Path) -> tuple[ActorConfig, LearnerConfig]:
    """The two processes' own configs. Raises ConfigError where the endpoint's port is taken."""
    check_port(config.protocol.endpoint)
    model = config.model
    if model != "tiny" and Path(model).is_dir():
        model = str(Path(model).resolve())
    filled: dict[str, Any] = {
        "run_dir": str(run_dir),
        "run_id": _run_id(run_dir),
        "model": model,
        "seed": config.seed,
        "protocol": config.protocol,
    }
    actor = config.actor
    if config.learner.weight_sync == "adapter":
        serving = engine_arguments(config.learner.lora) | actor.engine
        actor = msgspec.structs.replace(actor, engine=serving)
    return _filled(actor, filled), _filled(config.learner, filled)


def _run_id(run_dir: Path) -> str:
    """The name that the run began under: its journals are of that, whatever the folder's now."""
    path = run_dir / "learner.yaml"
    began = read_yaml(path).get("run_id") if path.exists() else None
    return began if isinstance(began, str) and began else run_dir.name


def _filled(section: T, values: dict[str, Any]) -> T:
    known = {name: values[name] for name in FILLED if name in section.__struct_fields__}
    return msgspec.structs.replace(section, **known)


def actor_configs(actor: ActorConfig, count: int) -> list[ActorConfig]:
    """The configs of `count` actors: each with a name and a seed of its own."""
    silent = msgspec.structs.replace(actor.evaluation, enabled=False)
    return [actor] + [
        msgspec.structs.replace(
            actor, name=f"{actor.name}-{number}", seed=actor.seed + number, evaluation=silent
        )
        for number in range(1, count)
    ]


def check_port(endpoint: str) -> None:
    """Raise ConfigError where the port that an endpoint names is taken. Port 0 always is free."""
    if not endpoint.startswith("tcp://") or endpoint.endswith(":0"):
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            None if host == "*" else host.strip("[]"),
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"protocol.endpoint: {endpoint} cannot be used ({error.strerror}); "
            "name another port, or 0 for a free one"
        ) from None


def write_configs(
    run_dir: Path, config: RunConfig, actors: Sequence[ActorConfig], learner: LearnerConfig
) -> None:
    """`config.yaml`, `learner.yaml` and `actor.yaml` (`actor-1.yaml`, ...) of the run folder."""
    whole = _plain(config)
    for section in ("actor", "learner"):
        for key in FILLED:
            whole[section].pop(key, None)
    for name, content, command in (
        ("config", whole, "launch"),
        ("learner", _plain(learner), "learner"),
        *((actor.name, _plain(actor), "actor") for actor in actors),
    ):
        head = f"# Resolved configuration. Use it again: dynatok {command} {name}.yaml\n"
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (run_dir / f"{name}.yaml").write_text(head + text, encoding="utf-8")


def _plain(config: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def list_fields(config: msgspec.Struct) -> str:
    """Every field that can be set, as `--flag value`, one a line."""
    plain = _plain(config)
    lines = []
    for path, _ in all_fields(type(config)):
        section, *rest = path.split(".")
        if section in ("actor", "learner") and rest and rest[0] in FILLED:
            continue
        value: Any = plain
        for part in path.split("."):
            value = value[part]
        lines.append(f"--{path.replace('_', '-')} {json.dumps(value)}")
    return "\n".join(lines)
