"""How old the trained tokens are, measured token by token, while the learner is slow."""

import signal
import time
from collections import Counter

import numpy as np
import pytest

from learner.config import LearnerConfig
from learner.main import run
from learner.online.learner import Learner
from learner.online.trainer import OnlineTrainer
from protocol.config import ProtocolConfig


@pytest.fixture
def handlers():
    """`run` installs its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("bound", [0, 1])
def test_no_token_is_trained_on_beyond_the_bound(
    tmp_path, model_dir, endpoint, fake_actor, handlers, monkeypatch, bound
):
    lags: Counter[int] = Counter()
    learners: list[Learner] = []
    step, on_batch = OnlineTrainer.training_step, Learner._on_batch

    def slow(trainer, *arguments, **more):
        time.sleep(0.05)
        return step(trainer, *arguments, **more)

    def watched(learner, batch):
        learners.append(learner)
        for one in batch:
            newest = learner.publisher.version
            lags.update(int(newest - version) for version in one.versions())
        on_batch(learner, batch)

    monkeypatch.setattr(OnlineTrainer, "training_step", slow)
    monkeypatch.setattr(Learner, "_on_batch", watched)
    config = LearnerConfig(
        run_dir=str(tmp_path),
        run_id=tmp_path.name,
        model=str(model_dir),
        protocol=ProtocolConfig(endpoint=endpoint, credits=64),
        training={"max_steps": 8, "learning_rate": 1e-3, "save_strategy": "no"},
        deepspeed={},
        trajectories_per_step=4,
        publish_every=2,
        max_policy_lag=bound,
        threads=1,
    )
    with fake_actor(endpoint, config.run_id, model_dir) as actor:
        assert run(config) == 0
    assert actor.error is None
    assert sum(lags.values()) > 8 * 4 * 4
    assert max(lags) <= bound
    assert lags[-1] == 0
    if bound == 0:
        # The two alternate: what one version may sample is sampled, trained on, and no more.
        counts = learners[0].stream.counts()
        assert counts["dropped_stale"] == 0
        assert actor.sent <= 8 * 4 + 2 * 4
        assert np.all(np.diff(actor.applied) == 1)
