"""`dynatok train`, as a user starts it: one rank, two ranks, gold responses, bad input."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dynatok_online.data.storage import write_trajectories
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import encode
from launch import cli
from learner.offline.config import TrainConfig


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
            "line 2: the data holds chat messages, but model 'tiny' has no chat template",
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "data is missing"),
        ({"ranks": 0}, "ranks is 0"),
        ({"ranks": 3}, r"trajectories_per_step \(16\) must be divisible"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"data": "x", **change})
