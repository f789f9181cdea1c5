"""`dynatok train`, as a user starts it: one rank, two ranks, gold responses, bad input."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from dynatok_online.data.storage import write_trajectories
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import encode
from launch import cli
from learner.offline.config import TrainConfig

DEEPSPEED = os.environ.get("TRAIN_FLAGS", "").split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tasks = islice(world.tasks("train", seed=4), 32)
    made = [scripted_trajectory(one, encode(world.gold_response(one)), encode) for one in tasks]
    write_trajectories(folder / "part-0.parquet", made)
    return folder


def train(capfd: Any, config: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["train", str(config), *flags])
    out, err = capfd.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, err


def written(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(
        f"data: {data}\ndir: {tmp_path / 'runs'}\ntrajectories_per_step: 8\nobjective: sft\n"
        "epochs: 2\ntraining: {learning_rate: 1e-3}\n"
    )
    return path


def losses(run_dir: str) -> list[float]:
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.engine
def test_one_rank_and_two_agree_and_learn(tmp_path: Path, data: Path, capfd: Any) -> None:
    config = written(tmp_path, data)
    code, one, err = train(capfd, config)
    assert code == 0, err
    code, two, err = train(capfd, config, "--ranks", "2")
    assert code == 0, err
    assert (one["steps"], one["ranks"], two["ranks"], one["trajectories"]) == (8, 1, 2, 32)
    curve = losses(one["run_dir"])
    assert losses(two["run_dir"]) == pytest.approx(curve, rel=1e-5)
    assert sum(curve[4:]) < sum(curve[:4]), "the second epoch must be easier than the first"
    names = {path.name for path in Path(one["run_dir"]).iterdir()}
    assert {"config.yaml", "metrics.jsonl", "logs", "model", "result.json"} <= names
    assert (Path(one["model"]) / "model.safetensors").exists()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 2: not JSON"),
        (
            {"messages": [{"role": "user", "content": "hi"}], "response": "yes"},
            "line 2: there are chat messages, but model 'tiny' has no chat template",
        ),
    ],
)
def test_bad_rows_are_one_line(tmp_path: Path, row: Any, message: str, capfd: Any) -> None:
    gold = json.dumps({"prompt": "Say: ", "response": "owls"})
    lines = [gold, row if isinstance(row, str) else json.dumps(row)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    code, _, err = train(capfd, written(tmp_path, tmp_path / "data.jsonl"))
    assert code == 2
    said = [line for line in err.splitlines() if line.startswith("dynatok: ")]
    assert len(said) == 2  # the run folder, and what is wrong
    assert message in said[1]


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_it_is_ended_no_rank_is_left(
    tmp_path: Path, data: Path, number: signal.Signals
) -> None:
    config = written(tmp_path, data)
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--ranks", "2"]
    endless = ["--training.max_steps", "100000", "--training.logging_steps", "1"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*command, *endless], stdout=said, stderr=said)
    try:
        runs = tmp_path / "runs"
        deadline = time.monotonic() + 120
        while not list(runs.glob("*/metrics.jsonl")):
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) >= 2
        process.send_signal(number)
        code = process.wait(60)
        _, left = psutil.wait_procs(ranks, 5)
        assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        process.kill()
        process.wait()
    expected = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
    assert code == expected[number]
    assert "Traceback" not in (tmp_path / "said").read_text()


@pytest.mark.engine
def test_a_rank_that_dies_ends_the_others_and_is_named(
    tmp_path: Path, data: Path, capfd: Any
) -> None:
    config = written(tmp_path, data)

    def kill_the_second() -> None:
        while True:
            time.sleep(0.1)
            for one in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, OSError, KeyError):
                    if "learner.ranks" in one.cmdline() and one.environ()["RANK"] == "1":
                        one.kill()
                        return

    threading.Thread(target=kill_the_second, daemon=True).start()
    code, _, err = train(capfd, config, "--ranks", "2")
    assert code == 1
    (run,) = (tmp_path / "runs").iterdir()
    said = err.splitlines()[-1]
    assert said == f"dynatok: rank 1 was killed by SIGKILL; its log: {run / 'logs' / 'rank-1.log'}"


def last_losses(run_dir: str) -> dict[int, float]:
    """Step -> its loss, when it was made last."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return {one["step"]: one["loss"] for one in map(json.loads, lines)}


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_at_any_step_it_resumes_bit_for_bit(
    tmp_path: Path, data: Path, capfd: Any, number: signal.Signals
) -> None:
    flags = ["--training.save_steps", "2", "--training.max_steps", "10", *DEEPSPEED]
    config = written(tmp_path, data)
    code, _, err = train(capfd, config, *flags)
    assert code == 0, err
    for run in (tmp_path / "runs").iterdir():
        run.rename(tmp_path / "whole")
    command = [sys.executable, "-m", "launch.cli", "train", str(config), *flags]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "runs").glob("*/checkpoints/*/stream.json"))) < 1:
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "result.json").exists(), "it had ended by itself"
    stopped = max(last_losses(str(run)))
    if number == signal.SIGTERM:  # with a checkpoint of the very step
        assert code == 143
        assert (run / "checkpoints" / f"checkpoint-{stopped}" / "stream.json").exists()
    code, resumed, err = train(capfd, run, "--resume")
    assert code == 0, err
    assert resumed["steps"] == 10
    assert last_losses(str(run)) == last_losses(str(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_killed_at_any_step_leaves_losses_that_resume_bit_for_bit(
    tmp_path: Path, data: Path, capfd: Any, stage: int, victim: int
) -> None:
    """Two ranks under DeepSpeed; checkpoints at every third step, the kill at any moment."""
    flags = ["--ranks", "2", "--deepspeed.zero_optimization.stage", str(stage)]
    flags += ["--training.save_steps", "3", "--training.max_steps", "16"]
    config = written(tmp_path, data)
    code, whole, err = train(capfd, config, *flags, "--dir", str(tmp_path / "whole"))
    assert code == 0, err
    step = random.Random(10 * stage + victim).randint(4, 13)  # behind the first checkpoint
    command = [sys.executable, "-m", "launch.cli", "train", str(config), *flags]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 240
        while step not in {
            one for run in (tmp_path / "runs").glob("*/metrics.jsonl") for one in steps(run.parent)
        }:
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, KeyError):
                if "learner.ranks" in one.cmdline() and one.environ()["RANK"] == str(victim):
                    one.kill()
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code == 1, (tmp_path / "said").read_text()
    (run,) = (tmp_path / "runs").iterdir()
    print(f"rank {victim} killed at step {step}, {max(steps(run))} logged")
    code, resumed, err = train(capfd, run, "--resume")
    assert code == 0, err
    assert resumed["steps"] == 16
    assert last_losses(str(run)) == last_losses(whole["run_dir"])


def steps(run: Path) -> list[int]:
    """Steps that were logged."""
    return [*last_losses(str(run))]


@pytest.mark.engine
def test_adapters_are_kept_and_merged(tmp_path: Path, data: Path, capfd: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from dynatok_online import tiny

    lora = ["--lora.r", "4", "--lora.target_modules", "[q_proj, down_proj]"]
    code, result, err = train(capfd, written(tmp_path, data), *lora, *DEEPSPEED)
    assert code == 0, err
    merged = AutoModelForCausalLM.from_pretrained(result["model"]).state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny.resolve("tiny"))
    before = {name: one.clone() for name, one in base.state_dict().items()}
    adapter = Path(result["run_dir"]) / "adapter"
    wanted = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys()
    assert all(one.allclose(wanted[name], atol=1e-6) for name, one in merged.items())
    moved = {name for name, one in merged.items() if not one.equal(before[name])}
    assert moved == {name for name in merged if "q_proj.weight" in name or "down_proj" in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"use_bdlora": {"x": 1}}}, "lora.use_bdlora cannot be served"),
        ({"data": ""}, "data is missing"),
        ({"ranks": 0}, "ranks is 0"),
        ({"ranks": 3}, r"trajectories_per_step \(16\) must be divisible"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"data": "x", **change})


def test_what_is_too_long_for_a_row_is_left_out_counted_and_said(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynatok_online.data.storage import read_trajectories
    from dynatok_online.rows.plan import needed_tokens
    from learner.offline.train import fitting

    trajectories = list(read_trajectories(data))
    sizes = sorted(needed_tokens(one) for one in trajectories)
    budget = sizes[-1] - 1
    bad: list[str] = []
    kept = fitting(trajectories, {"max_row_tokens": budget}, bad)
    assert len(kept) == sum(size <= budget for size in sizes) < len(sizes)
    assert len(bad) == len(sizes) - len(kept)
    assert f"max_row_tokens is {budget}: raise it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="every trajectory is too long"):
        fitting(trajectories, {"max_row_tokens": 3}, bad)
