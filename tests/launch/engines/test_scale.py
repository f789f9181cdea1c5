"""When an actor is added, and when one is given back."""

from __future__ import annotations

from pathlib import Path

from launch.engines.scale import Scale
from protocol.run.metrics import Metrics


def steps(run: Path, seconds: float, waited: float, count: int = 4) -> None:
    with Metrics(run, "learner", tensorboard=False) as metrics:
        for step in range(count):
            metrics.log(step, seconds_step=seconds, seconds_wait_for_batch=waited)


def test_actors_are_added_while_the_learner_waits_and_given_back_when_it_does_not(
    tmp_path: Path,
) -> None:
    scale = Scale(tmp_path, least=1, most=3, window=10.0)
    assert scale.change(0.0, 1) == 0, "nothing is known yet"
    steps(tmp_path, 1.0, 0.8)
    assert scale.change(5.0, 1) == 0, "too early to say"
    assert scale.change(10.0, 1) == 1
    assert scale.change(20.0, 2) == 0, "no step since"
    steps(tmp_path, 1.0, 0.8)
    assert scale.change(20.0, 3) == 0, "there are no more to add"
    steps(tmp_path, 1.0, 0.1)
    assert scale.change(30.0, 3) == 0, "neither much nor hardly"
    steps(tmp_path, 1.0, 0.0)
    assert scale.change(40.0, 3) == -1
    steps(tmp_path, 1.0, 0.0)
    assert scale.change(50.0, 1) == 0, "so many stay in any case"


def test_without_a_range_nothing_changes(tmp_path: Path) -> None:
    scale = Scale(tmp_path, least=2, most=2, window=0.0)
    steps(tmp_path, 1.0, 1.0)
    assert scale.change(1.0, 2) == 0
