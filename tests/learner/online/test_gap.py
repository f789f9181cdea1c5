"""The gap is measured per version, under that version's weights, on its tokens only."""

import numpy as np
import pytest
import torch

from learner.online.canary import canary, canary_texts
from learner.online.gap import GapProbe
from learner.online.gather import gather_weights
from learner.online.shadow import Shadow


@pytest.fixture(scope="module")
def model(model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def plain_logprobs(model, trajectory):
    """One plain forward per pass."""
    out = []
    for k, one in enumerate(trajectory.passes):
        ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long)[None]
        with torch.no_grad():
            table = model(ids).logits[0].log_softmax(-1).numpy()
        at = np.arange(trajectory.fed_length(k) - 1, ids.shape[1] - 1)
        out.append(table[at, trajectory.response[one.start : one.stop]])
    return np.concatenate(out).astype(np.float32)


def sampled(model, make, name, version, seed):
    text = make(name, version=version, seed=seed)
    logprobs = plain_logprobs(model, text)
    return make(name, version=version, seed=seed, logprobs=lambda _: logprobs)


def test_equal_weights_give_a_gap_of_zero_and_other_weights_do_not(model, make):
    weights = gather_weights(model, torch.float32)
    other = {name: value * 1.01 for name, value in weights.items()}
    probe = GapProbe(Shadow(model), trajectories=2, keep=4)
    probe.published(0, weights)
    probe.published(1, other)
    batch = [sampled(model, make, "a", 0, 1), sampled(model, make, "b", 1, 2)]
    first, second = probe.observe(batch)
    assert (first.version, second.version) == (0, 1)
    assert first.mean < 1e-6
    assert second.mean > 1e-4
    assert first.tokens == len(batch[0].response)
    assert probe.worst == second
    assert probe.observe(batch) == [], "once per version"


def test_a_version_that_nobody_used_is_let_go(model, make):
    weights = gather_weights(model, torch.float32)
    probe = GapProbe(Shadow(model), trajectories=1, keep=2)
    for version in range(3):
        probe.published(version, weights)
    assert probe.missed == 1
    assert probe.observe([sampled(model, make, "a", 0, 1)]) == []


def test_not_a_number_is_the_worst_gap(model, make):
    probe = GapProbe(Shadow(model), trajectories=1, keep=2)
    probe.published(0, gather_weights(model, torch.float32))
    (gap,) = probe.observe([make("a", logprobs=lambda n: np.full(n, np.nan, np.float32))])
    assert np.isnan(gap.mean)
    assert probe.worst is gap


def test_the_canary_is_that_of_plain_forwards(model):
    shadow = Shadow(model)
    shadow.load(gather_weights(model, torch.float32))
    texts = canary_texts(model.config.vocab_size, 2, 16, seed=3)
    found = canary(shadow, texts, 1e-3)
    for ids, logprobs in zip(texts, found.logprobs, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        assert logprobs == pytest.approx(want.tolist(), abs=1e-5)
