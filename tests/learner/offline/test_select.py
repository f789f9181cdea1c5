"""`dynatok select`: the file that it writes, and that training reads it."""

from __future__ import annotations

import json
from itertools import islice

import msgspec
import numpy as np
import pytest

from dynatok_online.data.storage import read_trajectories, write_trajectories
from dynatok_online.objectives.token_weights import selected_weights
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import encode
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.trajectory import Selected, from_row, selected, to_row
from learner.offline.config import SelectConfig
from learner.offline.select import run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    """Gold of the tiny world; every third one is scrambled, and so surprising."""
    rng = np.random.default_rng(0)
    many = []
    for i, task in enumerate(islice(world.tasks("train", seed=5, max_tokens=96, edits=(1, 2)), 8)):
        text = world.gold_response(task)
        if i % 3 == 0:
            text = "".join(rng.permutation(list(text)))
        many.append(scripted_trajectory(task, encode(text), encode))
    path = tmp_path / "data.jsonl"
    write_trajectories(path, many)
    return path


def select(data, capsys, **options):
    out = data.parent / "selected.jsonl"
    assert run(SelectConfig(data=str(data), out=str(out), **options)) == 0
    return list(read_trajectories(out)), json.loads(capsys.readouterr().out.splitlines()[-1])


def test_qtuning_keeps_responses_and_tokens(data, capsys) -> None:
    kept, said = select(data, capsys, method="qtuning", keep=0.5, tokens=0.4)
    assert said["trajectories"] == 8
    assert said["kept"] == len(kept) == said["pruned"] + said["whole"] > 0
    assert all(isinstance(one, Selected) for one in kept)
    tokens = sum(int((one.weights > 0).sum()) for one in kept)
    assert said["tokens_kept"] == tokens < said["tokens"]
    # The mean weight is 1: the divisor is the number of all tokens that are read.
    weights = np.concatenate([one.weights for one in kept])
    assert weights.mean() == pytest.approx(1, rel=1e-6)
    row = TrajectoryCollator()(kept)["rows"][0]
    assert sorted(row.weights) == pytest.approx(sorted(weights))


def test_tshirt_keeps_whole_responses(data, capsys) -> None:
    kept, said = select(data, capsys, method="tshirt", keep=0.25, noises=2)
    assert said["kept"] == len(kept) == 2
    assert not any(isinstance(one, Selected) for one in kept)
    assert said["informative_tokens"] > 0
    again, _ = select(data, capsys, method="tshirt", keep=0.25, noises=2)
    assert [one.trajectory_id for one in again] == [one.trajectory_id for one in kept]


def test_a_row_with_weights(data) -> None:
    one = next(iter(read_trajectories(data)))
    weights = np.linspace(0, 2, len(one.response)).astype(np.float32)
    back = from_row(json.loads(json.dumps(to_row(selected(one, weights)))))
    assert isinstance(back, Selected)
    assert np.array_equal(back.weights, weights)
    assert np.array_equal(selected_weights(back), weights)
    assert np.array_equal(selected_weights(one), np.ones(len(one.response)))
    assert "weights" not in to_row(one)
    with pytest.raises(ValueError, match="must be aligned"):
        from_row({**to_row(one), "weights": [1.0]})
    with pytest.raises(ValueError, match="a weight is negative"):
        from_row({**to_row(one), "weights": [-1.0] * len(one.response)})


def test_rewards_and_selection_multiply_once(data) -> None:
    one = next(iter(read_trajectories(data)))
    passes = tuple(msgspec.structs.replace(p, scores={"case": 0.5}) for p in one.passes)
    one = msgspec.structs.replace(one, passes=passes)
    weights = np.full(len(one.response), 3.0, np.float32)
    batch = TrajectoryCollator()([selected(one, weights)])
    assert set(batch["rows"][0].weights.tolist()) == {3.0}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": 0.0}, "keep is 0.0; write a share above 0"),
        ({"neighbours": 2.0}, "neighbours is 2.0"),
        ({"noises": 0}, "noises is 0; write 1 or more"),
        ({"out": "x.parquet"}, "name a .jsonl file"),
        ({"data": ""}, "data is missing"),
    ],
)
def test_settings_that_cannot_be(options, match) -> None:
    with pytest.raises(ValueError, match=match):
        SelectConfig(**{"data": "x", **options})
