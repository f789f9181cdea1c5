"""A learner that was killed goes on from its checkpoint as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load_file

from learner.online.checkpoint import FILE, latest
from protocol.config import ProtocolConfig
from protocol.delivery.durable import JournaledStore
from protocol.run.trace import account
from protocol.wire.codec import encode
from protocol.wire.envelope import Sealer
from protocol.wire.messages import TrajectoryMessage
from tests.learner.test_main import SCRIPT

STEPS, PER_STEP = 8, 4


def settings(run_dir: Path, model: Path, endpoint: str, deepspeed: dict) -> dict:
    return {
        "run_dir": str(run_dir),
        "run_id": f"resume-{os.getpid()}-{run_dir.name}",
        "model": str(model),
        "protocol": ProtocolConfig(endpoint=endpoint),
        "training": {
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2,
            "save_steps": 3,
        },
        "deepspeed": deepspeed,
        "trajectories_per_step": PER_STEP,
        "publish_every": STEPS,
        "logprob_gap_trajectories": 0,
        "finish_deadline": 60.0,
        "threads": 1,
    }


def journal(config: dict, make) -> None:
    """Fixed data: an actor's trajectories, as if they had been received before the start."""
    store = JournaledStore(Path(config["run_dir"]) / "journal" / "learner", config["run_id"])
    sealer = Sealer(config["run_id"], "actor")
    store.receipts.hello("actor", 1, ())
    for number in range(STEPS * PER_STEP):
        message = TrajectoryMessage(make(f"t{number}", seed=number), (number,))
        store.append(sealer.seal(encode(message), 1, number + 1))
        store.receipts.add("actor", 1, number + 1)
    store.commit()
    store.close()


def learner(config: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, msgspec.json.encode(config)],
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(config: dict) -> dict[int, tuple[float, float]]:
    """Step -> loss and gradient norm; of a step that was made twice, the last."""
    lines = Path(config["run_dir"], "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def finish(config: dict, fake_actor) -> None:
    with fake_actor(
        config["protocol"].endpoint, config["run_id"], config["model"], silent=True
    ) as actor:
        process = learner(config)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
        actor.join()
    assert actor.error is None


@pytest.mark.engine
@pytest.mark.parametrize("deepspeed", [{}, {"zero_optimization": {"stage": 2}}], ids=["", "zero2"])
def test_losses_after_a_kill_are_those_of_the_undisturbed_run(
    tmp_path, model_dir, endpoint, make, fake_actor, deepspeed
):
    whole = settings(tmp_path / "whole", model_dir, endpoint, deepspeed)
    journal(whole, make)
    finish(whole, fake_actor)

    broken = settings(tmp_path / "broken", model_dir, endpoint, deepspeed)
    journal(broken, make)
    process = learner(broken)
    checkpoint = tmp_path / "broken" / "checkpoints" / "checkpoint-3" / FILE
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed_after = max(losses(broken))
    last = latest(tmp_path / "broken" / "checkpoints")
    assert last is not None
    assert last.state.step in (3, 6)
    assert last.state.consumed.low == last.state.step * PER_STEP
    assert last.state.tasks["actor"].low == last.state.step * PER_STEP
    finish(broken, fake_actor)

    assert losses(broken) == losses(whole)
    assert len(losses(whole)) == STEPS
    assert len(set(losses(whole).values())) == STEPS
    assert killed_after < STEPS, "it was killed while it trained"
    found = account(tmp_path / "broken")
    assert found.twice == []
    assert len(found.trained) == STEPS * PER_STEP
    models = [
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "broken")
    ]
    assert models[0].keys() == models[1].keys()
    for name, value in models[0].items():
        assert value.tobytes() == models[1][name].tobytes(), name
