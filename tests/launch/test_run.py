"""New runs and resumed ones, up to the point where processes would be started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch import run
from launch.config import RunConfig, actor_configs, resolve
from launch.decode import ConfigError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    assert run.launch(RunConfig(dir=str(tmp_path), name="one", actors=2), dry_run=True) == 0
    (folder,) = tmp_path.iterdir()
    return folder


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def test_each_actor_has_its_own_file_name_and_seed(run_dir: Path) -> None:
    first, second = read(run_dir / "actor.yaml"), read(run_dir / "actor-1.yaml")
    assert (first["name"], second["name"]) == ("actor", "actor-1")
    assert second["seed"] == first["seed"] + 1
    assert first["evaluation"]["enabled"]
    assert not second["evaluation"]["enabled"]
    assert first["protocol"] == second["protocol"] == read(run_dir / "learner.yaml")["protocol"]


def test_one_actor_is_just_the_actor(tmp_path: Path) -> None:
    actor, _ = resolve(RunConfig(), tmp_path)
    assert actor_configs(actor, 1) == [actor]


def test_a_resumed_run_keeps_its_folder_and_takes_flags(run_dir: Path) -> None:
    steps = ("--learner.training.max_steps", "70")
    assert run.resume(run_dir, steps, dry_run=True) == 0
    learner = read(run_dir / "learner.yaml")
    assert learner["training"]["max_steps"] == 70
    assert learner["run_id"] == run_dir.name
    assert learner["run_dir"] == str(run_dir)


def test_what_cannot_be_resumed_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        run.resume(tmp_path)
    (run_dir / "learner.json").write_text(json.dumps({"finished": True, "learner_steps": 50}))
    steps = ("--learner.training.max_steps", "50")
    with pytest.raises(ConfigError, match="has finished its 50 steps"):
        run.resume(run_dir, steps, dry_run=True)
