"""The gap is measured per version, by the model in training, on that version's tokens only."""

import msgspec
import numpy as np
import pytest
import torch

from dynatok_online.trajectory import VersionRun
from learner.online.canary import canary, canary_texts
from learner.online.gap import GapProbe
from learner.online.scorer import Scorer


@pytest.fixture(scope="module")
def model(model_dir):
    from transformers import AutoModelForCausalLM

    from dynatok_online import attention

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    attention.prepare(model, "concat")
    return model.train()


@pytest.fixture
def scorer(model):
    return Scorer(lambda: model, torch.device("cpu"))


def plain_logprobs(model_dir, trajectory):
    """One plain forward per pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    out = []
    for k, one in enumerate(trajectory.passes):
        ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long)[None]
        with torch.no_grad():
            table = model(ids).logits[0].log_softmax(-1).numpy()
        at = np.arange(trajectory.fed_length(k) - 1, ids.shape[1] - 1)
        out.append(table[at, trajectory.response[one.start : one.stop]])
    return np.concatenate(out).astype(np.float32)


@pytest.fixture
def sampled(model_dir, make):
    """`sampled(name, version, seed)`: a trajectory that the model itself might have written."""

    def one(name, version, seed, off=0.0):
        text = make(name, version=version, seed=seed)
        logprobs = plain_logprobs(model_dir, text) + np.float32(off)
        return make(name, version=version, seed=seed, logprobs=lambda _: logprobs)

    return one


def test_only_tokens_of_the_weights_in_training_are_compared(scorer, sampled):
    probe = GapProbe(scorer, trajectories=2)
    old, new = sampled("a", 0, 1, off=0.5), sampled("b", 1, 2)
    probe.published(1)
    gap = probe.before_step([old, new])
    assert gap is not None
    assert gap.version == 1
    assert gap.mean < 1e-6
    assert gap.kl < 1e-6
    last = new.passes[-1]
    assert last.stop - last.start <= gap.tokens < len(new.response)
    assert probe.worst == gap
    assert (probe.compared, probe.missed) == (1, 0)
    assert probe.before_step([new]) is None, "once per version: the weights have moved"


def test_of_a_response_that_two_versions_sampled_the_later_pass_is_compared(scorer, sampled):
    """Its beginning differs, as old weights make it, and is not looked at."""
    one = sampled("a", 1, 1)
    first = one.passes[0]
    runs = (VersionRun(0, first.stop - first.start),)
    passes = (msgspec.structs.replace(first, weight_versions=runs), *one.passes[1:])
    logprobs = one.logprobs.copy()
    logprobs[first.start : first.stop] -= 1
    probe = GapProbe(scorer, trajectories=2)
    probe.published(1)
    gap = probe.before_step([msgspec.structs.replace(one, passes=passes, logprobs=logprobs)])
    assert gap is not None
    assert gap.largest < 1e-6
    assert gap.tokens >= one.passes[-1].stop - one.passes[-1].start


def test_what_the_actor_computed_otherwise_shows(scorer, sampled):
    probe = GapProbe(scorer, trajectories=2)
    probe.published(0)
    gap = probe.before_step([sampled("a", 0, 1, off=-0.1)])
    assert gap is not None
    assert gap.mean == pytest.approx(0.1, rel=1e-3)
    assert gap.largest == pytest.approx(0.1, rel=1e-3)
    assert gap.kl == pytest.approx(np.exp(0.1) - 1 - 0.1, rel=1e-3)


def test_a_version_that_nothing_came_of_in_time_is_counted(scorer, sampled):
    probe = GapProbe(scorer, trajectories=1)
    for version in range(3):
        probe.published(version)
        assert probe.due
        assert (probe.before_step([sampled("a", 0, 1)]) is None) == (version > 0)
    assert (probe.compared, probe.missed) == (1, 2)
    assert probe.note == ""


def test_a_run_that_never_compared_says_so(scorer):
    probe = GapProbe(scorer, trajectories=1)
    for version in range(3):
        probe.published(version)
        assert probe.before_step([]) is None
    assert "never measured: of none of 3 versions" in probe.note


def test_every_rank_is_told_how_many_rows_are_scored_even_if_none_are(scorer, sampled):
    rows: list[int] = []
    probe = GapProbe(scorer, 1, rows.append)
    probe.before_step([])
    probe.published(0)
    probe.before_step([sampled("a", 0, 1)])
    probe.published(1)
    probe.before_step([sampled("a", 0, 1)])
    assert rows == [1, 0]


def test_nothing_is_compared_where_that_is_turned_off(scorer, sampled):
    probe = GapProbe(scorer, trajectories=0)
    probe.published(0)
    assert not probe.due
    assert probe.before_step([sampled("a", 0, 1)]) is None
    assert probe.missed == 0


def test_not_a_number_is_the_worst_gap(scorer, make):
    probe = GapProbe(scorer, trajectories=1)
    probe.published(0)
    gap = probe.before_step([make("a", logprobs=lambda n: np.full(n, np.nan, np.float32))])
    assert gap is not None
    assert np.isnan(gap.mean)
    assert probe.worst is gap


def test_the_canary_is_that_of_plain_forwards(scorer, model, model_dir):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    texts = (*canary_texts(model.config.vocab_size, 2, 16, seed=3), (1, 2, 3))
    found = canary(scorer, texts, 1e-3)
    for ids, logprobs in zip(texts, found.logprobs, strict=True):
        with torch.no_grad():
            table = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        assert logprobs == pytest.approx(want.tolist(), abs=1e-5)
    assert model.training, "dropout was off meanwhile, and is on again"
