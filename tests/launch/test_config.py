"""A run's configuration: shipped files parse, both processes agree, resolved files load again."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actor.config import ActorConfig
from actor.demo.config import DemoConfig
from actor.offline.config import CollectConfig, EvalConfig, GoldConfig
from launch import config as launch_config
from launch.config import (
    MAX_ROW_TOKENS,
    RunConfig,
    check_port,
    list_fields,
    load_process,
    load_run,
    new_run_dir,
    resolve,
    write_configs,
)
from launch.decode import ConfigError, all_fields, decode, parse_flags
from learner.config import LearnerConfig
from learner.offline.config import SelectConfig, TrainConfig

ALONE: dict[str, type[Any]] = {
    "collect": CollectConfig,
    "demo": DemoConfig,
    "eval": EvalConfig,
    "gold": GoldConfig,
    "select": SelectConfig,
    "train": TrainConfig,
}
SHIPPED = sorted((Path(launch_config.__file__).parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_parse(path):
    verb = path.stem.rpartition("-")[2]
    if verb in ALONE:
        load_process(path, ALONE[verb])
    else:
        load_run(path)


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "actors: 2\nprotocol: {credits: 60}\nlearner: {trajectories_per_step: 121}\n",
            "2 actors have only 120 trajectories that are not trained on; write protocol.credits "
            "61 or more",
        ),
        (
            "learner: {objective: hindsight}\nactor: {reuse: sticky}\n",
            "needs passes that compute earlier text under a new state, and actor.reuse is sticky; "
            "write exact",
        ),
        (
            "learner: {objective: hapo}\n",
            "learner.objective hapo compares several responses to one task, and "
            "actor.responses_per_task is 1; write 2 or more, such as 4",
        ),
        (
            "protocol: {max_message_bytes: 10000000}\nactor: {journal_bytes: 15000000}\n",
            "actor.journal_bytes is 15000000, less than two trajectories",
        ),
        (
            "protocol: {max_message_bytes: 10000000}\nlearner: {journal_bytes: 15000000}\n",
            "learner.journal_bytes is 15000000, less than two trajectories",
        ),
        ("learner: {weight_transport: store}\n", "write an address such as s3://"),
        (
            "learner: {weight_transport: store}\nprotocol: {weights_store: 'memory://a'}\n",
            "is of one process",
        ),
        (
            "protocol: {weights_store: 'file:///shared'}\n",
            "but learner.weight_transport is shm; write store, or no address",
        ),
    ],
)
def test_what_the_sections_allow_together_is_checked_at_the_start(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load_run(write(tmp_path, text))


def test_a_row_must_hold_what_the_engine_can_write(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("actor: {engine: {max_model_len: 20000}}\n")
    with pytest.raises(ConfigError, match=r"a row of the learner holds 16384 tokens.*20000, or"):
        load_run(path)
    path.write_text(path.read_text() + "learner: {training: {max_row_tokens: 20000}}\n")
    load_run(path)
    from dynatok_online.training.config import DynamicSFTConfig

    assert DynamicSFTConfig.max_row_tokens == MAX_ROW_TOKENS


def test_enough_credits_for_a_step_are_enough(tmp_path):
    text = "actors: 2\nprotocol: {credits: 60}\nlearner: {trajectories_per_step: 120}\n"
    text += "actor: {responses_per_task: 2}\n"
    assert load_run(write(tmp_path, text)).actors == 2


def test_a_renamed_run_folder_keeps_the_name_its_journals_are_of(tmp_path):
    folder = tmp_path / "began"
    folder.mkdir()
    config = RunConfig()
    actor, learner = resolve(config, folder)
    assert learner.run_id == actor.run_id == "began"
    write_configs(folder, config, [actor], learner)
    renamed = folder.rename(tmp_path / "renamed")
    actor, learner = resolve(config, renamed)
    assert learner.run_id == actor.run_id == "began"
    assert learner.run_dir == str(renamed)


def test_flags_go_over_the_file_and_keep_the_rest_of_it(tmp_path):
    path = write(tmp_path, "seed: 1\nlearner: {training: {max_steps: 5, learning_rate: 1e-3}}\n")
    config = load_run(path, ["--seed", "7", "--learner.training.learning-rate", "1e-4"])
    assert config.seed == 7
    assert config.learner.training == {"max_steps": 5, "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("actor: {sesions: 3}", "unknown key 'actor.sesions'; did you mean 'actor.sessions'?"),
        ("actor: {sessions: -3}", "actor.sessions is -3"),
        ("seed: -3", "seed is -3; write 0 or more"),
        ("time_limit: -1", "time_limit is -1.0; write 0 (none) or more"),
        ("name: a/b", "name is 'a/b'"),
        ("learner: {training: {learning_rate: -1}}", "learning_rate must be at least 0, got -1"),
        ("actor: {evaluation: {seed: -1}}", "actor.evaluation.seed is -1"),
        ("actor: {seed: 3}", "'actor.seed' is filled in for each run; write 'seed' instead"),
        (
            "learner: {protocol: {credits: 3}}",
            "'learner.protocol' is filled in for each run; write 'protocol' instead",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_run(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _counts() -> list[str]:
    """Full paths of the numbers that are set in a section, other than what the run fills in."""
    out = []
    for path, hint in all_fields(RunConfig):
        section, *rest = path.split(".")
        filled = section in ("actor", "learner") and rest[0] in launch_config.FILLED
        # Any seed will do, and a port of -1 is none.
        free = path.endswith((".seed", ".prometheus_port"))
        if hint in (int, float) and not filled and not free:
            out.append(path)
    return out


@pytest.mark.parametrize("path", _counts())
def test_no_number_may_be_negative(path):
    with pytest.raises(ConfigError, match="-1"):
        decode(parse_flags([f"--{path}", "-1"], RunConfig), RunConfig, "flag")


def test_both_processes_are_told_the_same(tmp_path):
    config = msgspec.structs.replace(RunConfig(), seed=3, model="some/model")
    actor, learner = resolve(config, tmp_path / "run-1")
    assert actor.run_id == learner.run_id == "run-1"
    assert actor.run_dir == learner.run_dir == str(tmp_path / "run-1")
    assert (actor.seed, actor.model) == (learner.seed, learner.model) == (3, "some/model")
    assert actor.protocol == learner.protocol


def test_a_folder_is_a_model_wherever_the_process_starts(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    actor, _ = resolve(msgspec.structs.replace(RunConfig(), model="mine"), tmp_path)
    assert actor.model == str(tmp_path / "mine")


def test_resolved_files_load_again(tmp_path):
    config = msgspec.structs.replace(RunConfig(), seed=3)
    actor, learner = resolve(config, tmp_path)
    write_configs(tmp_path, config, [actor], learner)
    assert load_process(tmp_path / "actor.yaml", ActorConfig) == actor
    assert load_process(tmp_path / "learner.yaml", LearnerConfig) == learner
    again = load_run(tmp_path / "config.yaml")
    assert resolve(again, tmp_path)[0].sessions == actor.sessions
    assert again.seed == 3
    assert load_process(tmp_path / "learner.yaml", LearnerConfig, ["--seed", "9"]).seed == 9


def test_run_folders_do_not_collide(tmp_path):
    config = msgspec.structs.replace(RunConfig(), dir=str(tmp_path / "runs"), name="x")
    made = {new_run_dir(config) for _ in range(3)}
    assert len(made) == 3
    assert all(one.is_dir() and one.name.startswith("x-") for one in made)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "runs").write_text("a file")
    config = msgspec.structs.replace(RunConfig(), dir=str(tmp_path / "runs"))
    with pytest.raises(ConfigError, match="dir: "):
        new_run_dir(config)


def test_a_busy_port_is_said():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as busy:
        endpoint = f"tcp://127.0.0.1:{busy.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{endpoint} cannot be used .*in use.*0 for a free"):
            check_port(endpoint)


@pytest.mark.parametrize("endpoint", ["ipc:///tmp/dynatok", "tcp://127.0.0.1:0"])
def test_a_port_that_is_chosen_when_it_is_bound_is_left_alone(tmp_path, endpoint):
    check_port(endpoint)
    protocol = msgspec.structs.replace(RunConfig().protocol, endpoint=endpoint)
    actor, learner = resolve(msgspec.structs.replace(RunConfig(), protocol=protocol), tmp_path)
    assert actor.protocol.endpoint == learner.protocol.endpoint == endpoint


def test_every_listed_field_is_a_flag():
    for line in list_fields(RunConfig()).splitlines():
        flag, _, value = line.partition(" ")
        if value.startswith('"'):
            value = value.strip('"')
        decode(parse_flags([flag, value], RunConfig), RunConfig, "flag")


LORA = {"r": 12, "target_modules": ["q_proj"]}


def adapters(**actor):
    return {"actor": actor, "learner": {"weight_sync": "adapter", "lora": LORA}}


def test_actors_of_a_learner_of_adapters_serve_adapters(tmp_path):
    config = decode(adapters(engine={"max_num_seqs": 4}), RunConfig, "here")
    actor, learner = resolve(config, tmp_path)
    assert actor.engine == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 16,
        "max_num_seqs": 4,
    }
    assert learner.weight_sync == "adapter"
    merged = decode({"learner": {"lora": LORA}}, RunConfig, "here")
    assert "enable_lora" not in resolve(merged, tmp_path)[0].engine


@pytest.mark.parametrize(
    ("actor", "said"),
    [
        (
            {"on_weights": "continue"},
            "on_weights is continue, but with learner.weight_sync adapter",
        ),
        ({"engine": {"max_lora_rank": 8}}, "max_lora_rank is 8, but learner.lora has rank 12"),
        ({"engine": {"enable_lora": False}}, "enable_lora is off"),
    ],
)
def test_what_cannot_serve_adapters_is_refused(actor, said):
    with pytest.raises(ConfigError, match=said):
        decode(adapters(**actor), RunConfig, "here")


def test_adapters_that_vllm_cannot_serve_are_refused():
    for learner, said in (
        ({"weight_sync": "adapter"}, "learner.lora trains, and that is empty"),
        ({"weight_sync": "adapters"}, "must be merged or adapter, got 'adapters'"),
        ({"weight_sync": "adapter", "lora": LORA | {"use_dora": True}}, "lora.use_dora cannot be"),
    ):
        with pytest.raises(ConfigError, match=said):
            decode({"learner": learner}, RunConfig, "here")
