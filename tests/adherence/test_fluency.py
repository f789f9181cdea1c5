"""NLL under another model: that of plain forwards, whatever KV the writer kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.adherence.fluency import nll_under
from dynatok_online.training import head
from tests.models import make
from tests.simulate import World, simulate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("policy", ["exact", "sticky"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_each_token_counts_under_its_own_prompt(
    policy: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MOST_TARGETS", 3)
    rng = np.random.default_rng(5)
    world = World(passes=(2, 4), sampled=(2, 5), outside=0)
    many = [simulate(rng, policy, block_size=2, world=world) for _ in range(5)]
    plain, judge = make(family), make(family)
    attention.prepare(judge)
    total = 0.0
    for one in many:
        for k in range(len(one.passes)):
            ids = torch.as_tensor(one.tokens(k), dtype=torch.long)
            with torch.no_grad():
                logprobs = plain(ids[None]).logits[0].log_softmax(-1)
            at = torch.arange(one.fed_length(k) - 1, len(ids) - 1)
            total -= float(logprobs[at, ids[at + 1]].sum())
    wanted = total / sum(len(one.response) for one in many)
    assert nll_under(judge, many, max_tokens=40) == pytest.approx(wanted, rel=1e-9)
    assert nll_under(judge, []) == 0.0
