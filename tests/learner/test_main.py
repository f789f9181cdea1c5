"""The whole learner against an actor without an engine: real channel, real shared memory, real
trainer, DeepSpeed where it says so."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from learner.config import LearnerConfig
from learner.main import run
from protocol.config import ProtocolConfig
from protocol.run import threads
from protocol.run.trace import account

SCRIPT = (
    "import sys, msgspec; from learner.config import LearnerConfig; "
    "from learner.main import run; "
    "sys.exit(run(msgspec.json.decode(sys.argv[1], type=LearnerConfig)))"
)


@pytest.fixture
def settings(tmp_path, model_dir, endpoint, monkeypatch):
    """Arguments of a LearnerConfig that trains four steps."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in (*ranks, *threads.NAMES):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield {
        "run_dir": str(tmp_path / "run"),
        "run_id": f"test-{os.getpid()}-{time.time_ns()}",
        "model": str(model_dir),
        "protocol": ProtocolConfig(endpoint=endpoint, credits=16),
        "training": {"max_steps": 4, "learning_rate": 1e-3},
        "deepspeed": {},
        "trajectories_per_step": 8,
        "start_deadline": 90.0,
        "batch_deadline": 90.0,
        "finish_deadline": 90.0,
        "threads": 1,
    }
    for number, handler in before.items():
        signal.signal(number, handler)


def summary(settings):
    with open(f"{settings['run_dir']}/learner.json") as file:
        return json.load(file)


def go(settings, actor_class, **options):
    with actor_class(
        settings["protocol"].endpoint, settings["run_id"], settings["model"], **options
    ) as actor:
        code = run(LearnerConfig(**settings))
    return code, actor


def learn_alone(settings):
    """In a process of its own, as it runs for real: DeepSpeed keeps state until a process ends."""
    learner = subprocess.run(
        [sys.executable, "-c", SCRIPT, msgspec.json.encode(settings)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert learner.returncode == 0, learner.stderr[-3000:]


@pytest.mark.engine
def test_trains_and_publishes_under_deepspeed(settings, fake_actor):
    settings["deepspeed"] = {"zero_optimization": {"stage": 2}}
    with fake_actor(settings["protocol"].endpoint, settings["run_id"], settings["model"]) as actor:
        learn_alone(settings)
    assert actor.error is None
    result = summary(settings)
    assert result["learner_steps"] == 4
    assert result["trajectories"] == 32
    assert result["audit_mismatches"] == 0
    assert result["logprob_gap_compared"] >= 2
    assert result["logprob_gap"] < 1e-5
    assert result["policy_lag_max"] <= 4
    assert result["finished"]
    assert result["failure"] is None
    # Every version that the actor took is the one that was announced, the final one included.
    assert actor.finish == actor.applied[-1] == result["weights_published"] >= 2
    assert max(actor.gaps) < 1e-5

    from transformers import AutoModelForCausalLM

    saved = dict(
        AutoModelForCausalLM.from_pretrained(f"{settings['run_dir']}/model").named_parameters()
    )
    for name, parameter in actor.model.named_parameters():
        assert parameter.equal(saved[name]), name
    with open(f"{settings['run_dir']}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["seconds_step"] > 0 for line in steps)
    assert any("logprob_gap" in line for line in lines)


@pytest.mark.engine
def test_weights_that_zero_3_has_taken_apart_are_published_whole(settings, fake_actor):
    settings["deepspeed"] = {"zero_optimization": {"stage": 3}}
    with fake_actor(settings["protocol"].endpoint, settings["run_id"], settings["model"]) as actor:
        learn_alone(settings)
    assert actor.error is None
    assert summary(settings)["logprob_gap"] < 1e-5
    assert max(actor.gaps) < 1e-5
    assert actor.applied[-1] >= 2


def test_adapters_are_published_merged(settings, fake_actor):
    settings["lora"] = {"r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "down_proj"]}
    settings["training"]["learning_rate"] = 1e-2
    code, actor = go(settings, fake_actor)
    assert code == 0
    assert actor.error is None
    assert summary(settings)["logprob_gap"] < 1e-5
    assert max(actor.gaps) < 1e-5

    from transformers import AutoModelForCausalLM

    base = dict(AutoModelForCausalLM.from_pretrained(settings["model"]).named_parameters())
    moved = {n for n, p in actor.model.named_parameters() if not p.equal(base[n])}
    assert moved == {n for n in base if "q_proj.weight" in n or "down_proj" in n}


def test_a_wrong_argument_of_lora_is_one_line(settings, capfd):
    settings["lora"] = {"rank": 4}
    assert run(LearnerConfig(**settings)) == 2
    assert "learner.lora.rank is not an argument" in capfd.readouterr().err.splitlines()[-1]


def test_fails_when_the_actor_computes_something_else(settings, fake_actor, capfd):
    code, _ = go(settings, fake_actor, corrupt=0.01)
    assert code == 3
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("learner: logprob_gap of weights 0 is 0.01")
    assert summary(settings)["logprob_gap"] == pytest.approx(0.01, rel=1e-3)


def test_fails_on_a_trajectory_that_contradicts_the_engine(settings, fake_actor, capfd):
    code, _ = go(settings, fake_actor, lie=True)
    assert code == 3
    assert "contradict what the engine reported" in capfd.readouterr().err.splitlines()[-1]
    result = summary(settings)
    assert result["audit_mismatches"] >= 1
    assert result["rejected"]["audit"] >= 1
    assert result["learner_steps"] == 0


def test_an_actor_that_left_is_named_when_no_batch_comes(settings, fake_actor, capfd):
    settings["batch_deadline"] = 2.0
    code, _ = go(settings, fake_actor, leave_after=10)
    assert code == 3
    last = capfd.readouterr().err.splitlines()[-1]
    assert "no batch of 8 trajectories within 2 s" in last
    assert last.endswith("the last actor (actor-0) said good-bye: finished")


def test_fails_when_the_weights_are_refused(settings, fake_actor, capfd):
    code, _ = go(settings, fake_actor, refuse=True)
    assert code == 3
    assert "no room" in capfd.readouterr().err.splitlines()[-1]


def test_fails_when_no_batch_comes(settings, capfd):
    settings["start_deadline"] = 0.3
    assert run(LearnerConfig(**settings)) == 3
    last = capfd.readouterr().err.splitlines()[-1]
    assert "no batch of 8 trajectories within 0.3 s" in last
    assert "raise learner.start_deadline" in last


def test_a_journal_that_fills_up_asks_for_checkpoints(settings, fake_actor):
    """It has room for four steps; without checkpoints nothing is ever deleted from it."""
    settings["training"]["max_steps"] = 12
    settings["training"]["save_steps"] = 1000
    settings["batch_deadline"] = 20.0
    settings["journal_bytes"] = 30_000
    code, actor = go(settings, fake_actor)
    assert actor.error is None
    assert code == 0
    result = summary(settings)
    assert result["learner_steps"] == 12
    assert result["trajectories"] == 96
    saved = Path(settings["run_dir"], "checkpoints").glob("checkpoint-*")
    assert min(int(path.name.split("-")[1]) for path in saved) < 12, "not only at the end"


def test_a_signal_stops_it_within_five_seconds(settings, fake_actor):
    settings["training"]["max_steps"] = 100_000
    sent = []

    def kill_later():
        while not os.path.exists(f"{settings['run_dir']}/learner.json"):
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill_later, daemon=True)
    killer.start()
    code, _ = go(settings, fake_actor)
    assert code == 0
    assert time.monotonic() - sent[0] < 5
    result = summary(settings)
    assert not result["finished"]
    assert result["learner_steps"] >= 1
    assert not list(_rings(settings))


def logged_steps(settings):
    lines = Path(settings["run_dir"], "metrics.jsonl").read_text().splitlines()
    return [one["step"] for one in map(json.loads, lines) if "loss" in one]


def test_it_is_stopped_with_a_checkpoint_and_goes_on_at_that_step(settings, fake_actor):
    """`save_steps` is far away: neither steps nor trajectories are made twice."""
    settings["training"] |= {"max_steps": 100_000, "save_steps": 100_000}
    folder = Path(settings["run_dir"], "checkpoints")

    def wait_for(what):
        while not what():
            time.sleep(0.02)

    def ask():
        wait_for(lambda: os.path.exists(f"{settings['run_dir']}/learner.json"))
        os.kill(os.getpid(), signal.SIGUSR1)  # a checkpoint, and on it goes
        wait_for(lambda: list(folder.glob("*/stream.json")))
        before = len(logged_steps(settings))
        wait_for(lambda: len(logged_steps(settings)) > before)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert go(settings, fake_actor)[0] == 0
    asking.join()
    stopped = summary(settings)
    saved = sorted(int(one.parent.name.split("-")[1]) for one in folder.glob("*/stream.json"))
    assert len(saved) == 2
    assert saved[0] < saved[1] == stopped["learner_steps"]
    settings["training"]["max_steps"] = saved[1] + 2
    assert go(settings, fake_actor, prefix="later-")[0] == 0
    result = summary(settings)
    assert result["learner_steps"] == saved[1] + 2
    assert result["trajectories"] == 8 * result["learner_steps"]
    assert account(settings["run_dir"]).twice == []
    assert logged_steps(settings) == list(range(1, saved[1] + 3))


def test_a_learner_killed_after_its_last_step_only_publishes_again(settings, fake_actor):
    assert go(settings, fake_actor)[0] == 0
    last = summary(settings)["weights_published"]
    code, actor = go(settings, fake_actor)
    assert code == 0
    assert actor.error is None
    assert actor.applied == [last + 1]
    assert actor.gaps[0] < 1e-5
    assert summary(settings)["learner_steps"] == 4

    from transformers import AutoModelForCausalLM

    saved = dict(
        AutoModelForCausalLM.from_pretrained(f"{settings['run_dir']}/model").named_parameters()
    )
    for name, parameter in actor.model.named_parameters():
        assert parameter.equal(saved[name]), name


def _rings(settings):
    from protocol.weights.shm import segment_path

    path = segment_path(settings["run_id"])
    return [path] if path.exists() else []


def test_a_busy_port_is_one_line(settings, capfd):
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        other.bind(settings["protocol"].endpoint)
        assert run(LearnerConfig(**settings)) == 2
    assert "cannot listen on" in capfd.readouterr().err.splitlines()[-1]
