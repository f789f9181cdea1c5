"""What the scorer says, against plain forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynatok_online.select.scoring import Scorer, without_prompt
from tests.models import make
from tests.oracle import exact_logits
from tests.simulate import World, simulate

pytestmark = pytest.mark.usefixtures("one_thread")


def response(seed: int):
    rng = np.random.default_rng(seed)
    return simulate(rng, world=World(passes=(2, 4), sampled=(2, 5), outside=0))


def test_each_token_under_its_own_prompt() -> None:
    plain, scorer = make("qwen3", torch.float32), Scorer(make("qwen3", torch.float32))
    for seed in range(3):
        one = response(seed)
        found = scorer.score(one)
        with torch.no_grad():
            for k, logits in exact_logits(plain, one):
                logprobs = logits.log_softmax(-1)
                start, stop = one.passes[k].start, one.passes[k].stop
                ids = torch.as_tensor(one.response[start:stop]).long()
                nll = -logprobs.gather(1, ids[:, None])[:, 0].numpy()
                entropy = -(logprobs.exp() * logprobs).sum(-1).numpy()
                assert found.nll[start:stop] == pytest.approx(nll, abs=2e-5)
                assert found.entropy[start:stop] == pytest.approx(entropy, abs=2e-5)


def test_without_a_prompt() -> None:
    plain, scorer = make("qwen3", torch.float32), Scorer(make("qwen3", torch.float32))
    one = response(1)
    first = next(int(one.pieces[i][0]) for i in one.passes[0].layout if i >= 0)
    text = torch.tensor([[first, *one.response[:-1].tolist()]])
    with torch.no_grad():
        logprobs = plain(text).logits[0].log_softmax(-1)
    nll = -logprobs.gather(1, torch.as_tensor(one.response).long()[:, None])[:, 0].numpy()
    assert scorer.score(without_prompt(one)).nll == pytest.approx(nll, abs=2e-5)


def test_noise_is_that_of_its_seed_and_goes_away() -> None:
    scorer, one = Scorer(make("qwen3", torch.float32)), response(2)
    before = scorer.score(one).nll
    with scorer.shaken(5.0, 40, seed=1):
        first = scorer.score(one).nll
    with scorer.shaken(5.0, 40, seed=1):
        again = scorer.score(one).nll
    with scorer.shaken(5.0, 40, seed=2):
        other = scorer.score(one).nll
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, before)
    assert np.array_equal(scorer.score(one).nll, before)
