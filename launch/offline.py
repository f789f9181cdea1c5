"""`dynatok train`: makes the run folder, has the ranks train, shows what came out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import yaml

from launch import environment, picture
from launch.panel import last_line
from launch.process import describe_exit
from learner.offline.config import TrainConfig
from learner.ranks import cause_of, log_of, run_ranks
from protocol.run.json_files import read_json
from protocol.run.run_folder import make_run_folder


def run(config: TrainConfig) -> int:
    """Train to the end; the exit code: 2 where the data or the settings cannot be used."""
    run_dir = make_run_folder(Path(config.dir), config.name)
    head = "# Resolved configuration. Use it again: dynatok train config.yaml\n"
    text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)
    (run_dir / "config.yaml").write_text(head + text, encoding="utf-8")
    return _train(config, run_dir)


def resume(config: TrainConfig, run_dir: Path) -> int:
    """Go on from the newest checkpoint of a run that was stopped or killed. Raises ValueError."""
    if read_json(run_dir / "result.json"):
        raise ValueError(f"--resume: {run_dir} has finished")
    from learner.online.checkpoint import latest  # imports torch
    from learner.training import CHECKPOINTS

    found = latest(run_dir / CHECKPOINTS)
    if found is None:
        raise ValueError(f"--resume: {run_dir} holds no whole checkpoint; start it again")
    if found.state.ranks != config.ranks:
        raise ValueError(
            f"--resume: ranks is {config.ranks}, but {found.path} was written by "
            f"{found.state.ranks}; write --ranks {found.state.ranks}"
        )
    _say(f"resuming from step {found.state.step}")
    return _train(config, run_dir)


def _train(config: TrainConfig, run_dir: Path) -> int:
    (run_dir / "train.json").write_bytes(msgspec.json.encode(config))
    _say(f"run folder {run_dir}")
    with _in(environment.for_child("learner", processes=config.ranks)):
        failed, asked = run_ranks(
            config.ranks, "learner.offline.train", run_dir / "train.json", run_dir
        )
    if asked is not None and not (run_dir / "result.json").exists():
        _say(f"to go on from its last checkpoint: dynatok train {run_dir} --resume")
        return 128 + asked
    if failed:
        return _explain(failed, run_dir)
    picture.draw(run_dir)
    print(json.dumps(read_json(run_dir / "result.json")), flush=True)
    return 0


def _explain(failed: Mapping[int, int], run_dir: Path) -> int:
    rank, code = cause_of(failed)
    if code == 2:
        _say(last_line(log_of(run_dir, rank), 2000))
        return 2
    where = f"its log: {log_of(run_dir, rank)}" if rank else "what it said stands above"
    _say(f"rank {rank} {describe_exit(code)}; {where}")
    return 1


@contextlib.contextmanager
def _in(variables: Mapping[str, str]) -> Iterator[None]:
    """These are the environment; afterwards, what was there before."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _say(text: str) -> None:
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
