"""What is written for sbatch and srun, without either: tests/launch/test_slurm.py runs it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch import run
from launch.config import RunConfig, actor_configs, resolve
from launch.decode import ConfigError, decode
from launch.engines import slurm
from launch.engines.config import SlurmConfig, options
from launch.engines.reachable import reachable


def test_options_are_written_as_a_command_line_takes_them():
    given = {"partition": "gpu", "gpus_per_node": 4, "exclusive": True, "C": "a100", "mail": None}
    assert options(given | {"exclude": ["n1", "n2"]}) == [
        *("--partition=gpu", "--gpus-per-node=4", "--exclusive", "-Ca100"),
        *("--exclude=n1", "--exclude=n2"),
    ]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"sbatch": {"time": 5400}}, "write it in quotes"),
        ({"sbatch": {"signal": "USR1"}}, "write slurm.save_seconds instead"),
        ({"sbatch": {"a b": 1}}, "'a b' is no option's name"),
        ({"actor": {"ntasks": 3}}, "slurm.actor.ntasks is filled in"),
        ({"actor": {"nodes": 2}}, "an actor has one node"),
        ({"learner": {"nodes": "1-2"}}, "write the number of its nodes"),
        ({"save_seconds": 0}, "write 1 or more"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_submitted(section, words):
    with pytest.raises(ConfigError, match=words):
        decode({"slurm": section}, RunConfig, "run.yaml")


def test_the_script_asks_for_what_was_written_and_starts_this_environment(tmp_path):
    config = SlurmConfig(
        sbatch={"partition": "gpu", "comment": "two words", "open-mode": "truncate"},
        setup=["module load cuda"],
        save_seconds=60,
    )
    folder = tmp_path / "100% mine"
    text = slurm.script(RunConfig(name="one", actors=3, slurm=config), folder)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --job-name=one" in lines
    assert '#SBATCH --comment="two words"' in lines
    assert f'#SBATCH --output="{tmp_path}/100%% mine/logs/slurm-%j.log"' in lines
    assert "#SBATCH --open-mode=truncate" in lines
    assert "#SBATCH --requeue" in lines
    assert "#SBATCH --signal=B:USR1@60" in lines
    assert "#SBATCH --ntasks=4" in lines, "a task for each step, where no size is written"
    assert lines.index("module load cuda") < len(lines) - 1
    assert lines[-1].startswith("exec ")
    assert lines[-1].endswith(f"-m launch.engines.slurm '{folder}'")
    sized = SlurmConfig(sbatch={"nodes": 2})
    assert "ntasks" not in slurm.script(RunConfig(slurm=sized), folder)


def test_actors_on_nodes_of_their_own_are_a_second_component(tmp_path):
    config = SlurmConfig(sbatch={"nodes": 2}, actors_sbatch={"ntasks": 8, "gpus-per-task": 1})
    lines = slurm.script(RunConfig(actors=8, slurm=config), tmp_path).splitlines()
    middle = lines.index("#SBATCH hetjob")
    assert "#SBATCH --nodes=2" in lines[:middle]
    assert lines[middle + 1 : middle + 3] == ["#SBATCH --ntasks=8", "#SBATCH --gpus-per-task=1"]
    actor, _ = resolve(RunConfig(), tmp_path)
    learner, first = slurm.commands(tmp_path, config, actor_configs(actor, 1))
    assert "--het-group=0" in learner.argv
    assert "--het-group=1" in first.argv


def test_a_step_is_one_process_with_the_options_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = SlurmConfig(
        learner={"gpus-per-node": 4},
        actor={"gpus_per_task": 1, "cpus-per-task": 8},
        container=["apptainer", "exec", "image.sif"],
    )
    actor, _ = resolve(RunConfig(), tmp_path)
    learner, first, second = slurm.commands(tmp_path, config, actor_configs(actor, 2))
    assert learner.argv[0] == first.argv[0] == "srun"
    assert {"--nodes=1", "--ntasks=1", "--gpus-per-node=4"} <= set(learner.argv)
    assert {"--nodes=1", "--ntasks=1", "--gpus-per-task=1"} <= set(first.argv)
    assert "--job-name=actor-1" in second.argv
    at = first.argv.index("apptainer")
    assert first.argv[at + 1 : at + 3] == ["exec", "image.sif"]
    assert first.argv[-1] == str(tmp_path / "actor.yaml")
    assert first.env["OMP_NUM_THREADS"] == "8"
    assert learner.stop_signal == first.stop_signal == signal.SIGUSR1
    assert first.rejoins
    assert not learner.rejoins


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"slurm": {"learner": {"nodes": 2}}}, "learner.ranks, over all of them, is 1; .* as 2"),
        (
            {"slurm": {"learner": {"nodes": 2}}, "learner": {"ranks": 5}},
            "write a multiple, such as 4",
        ),
        (
            {"slurm": {"learner": {"nodes": 2}, "sbatch": {"N": 1}}, "learner": {"ranks": 2}},
            "slurm.sbatch.nodes is 1, but slurm.learner.nodes is 2",
        ),
        (
            {
                "slurm": {"actor": {"gpus_per_task": "a100:2"}},
                "actor": {"engine": {"tensor_parallel_size": 4}},
            },
            "slurm.actor.gpus_per_task is 2, but .* takes 4",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_said_before_anything_is_submitted(
    tmp_path, config, words
):
    run_config = decode({**config, "dir": str(tmp_path / "runs")}, RunConfig, "run.yaml")
    with pytest.raises(ConfigError, match=words):
        run.launch(run_config, on="slurm", dry_run=True)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_learner_on_several_nodes_is_one_step_with_an_agent_on_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    steps = {"learner": {"nodes": 2, "gpus-per-node": 4, "cpus-per-task": 32}}
    config = decode({"slurm": steps, "learner": {"ranks": 8}, "actors": 3}, RunConfig, "run.yaml")
    lines = slurm.script(config, tmp_path).splitlines()
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --ntasks=5" in lines, "a task for each node of the learner, and each actor"
    actor, _ = resolve(config, tmp_path)
    learner, first = slurm.commands(tmp_path, config.slurm, actor_configs(actor, 1), ranks=8)
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(learner.argv)
    assert {"--gpus-per-node=4", "--kill-on-bad-exit=0"} <= set(learner.argv)
    assert learner.env["OMP_NUM_THREADS"] == "8", "four ranks share the cores of a task"
    assert {"--nodes=1", "--ntasks=1", "--kill-on-bad-exit=1"} <= set(first.argv)


def test_an_engine_on_several_gpus_is_one_task_that_has_them(tmp_path):
    config = decode(
        {
            "slurm": {"actor": {"gpus-per-task": 2}},
            "actor": {"engine": {"tensor_parallel_size": 2}},
        },
        RunConfig,
        "run.yaml",
    )
    slurm.script(config, tmp_path)
    actor, _ = resolve(config, tmp_path)
    _, first = slurm.commands(tmp_path, config.slurm, actor_configs(actor, 1))
    assert {"--ntasks=1", "--gpus-per-task=2"} <= set(first.argv)


def test_processes_on_other_machines_reach_the_learner_with_keys_of_this_run(tmp_path):
    assert run.launch(RunConfig(dir=str(tmp_path), name="one"), on="slurm", dry_run=True) == 0
    (folder,) = tmp_path.iterdir()
    text = (folder / "actor.yaml").read_text()
    assert "endpoint: tcp://*:0" in text
    assert f"keys: {folder}/keys" in text
    assert "weight_transport: folder" in (folder / "learner.yaml").read_text()
    for path in (folder / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    whole = (folder / "config.yaml").read_text()
    assert "ipc://*" in whole, "the run itself says nothing of where it runs"
    assert Path(folder / slurm.SCRIPT).exists()
    key = (folder / "keys" / "learner.key_secret").read_bytes()
    reachable(RunConfig(), folder)
    assert (folder / "keys" / "learner.key_secret").read_bytes() == key


def test_without_slurm_that_is_said_and_no_run_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        run.launch(RunConfig(dir=str(tmp_path / "runs"), name="one"), on="slurm")
    assert list((tmp_path / "runs").iterdir()) == []
