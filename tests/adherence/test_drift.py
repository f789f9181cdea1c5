"""Drift by hand: KL on static text, of the trained model from the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.adherence.drift import before_first_edit, drift
from tests.models import make
from tests.oracle import exact_logits
from tests.simulate import World, simulate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_text_before_the_first_edit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = simulate(rng, world=World(passes=(2, 5)))
        static = before_first_edit(one)
        assert all(p.layout == one.passes[0].layout for p in static.passes)
        k = len(static.passes)
        assert k == len(one.passes) or one.passes[k].layout != one.passes[0].layout
        assert len(static.response) == static.passes[-1].stop


def test_by_plain_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynatok_online.adherence.drift.TARGETS", 3)
    rng = np.random.default_rng(1)
    many = [simulate(rng, world=World(passes=(1, 3), sampled=(2, 6), outside=0)) for _ in range(4)]
    plain = make("qwen3")
    model, base = make("qwen3"), make("qwen3")
    with torch.no_grad():
        for one, other in ((model, plain),):
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                a.add_(0.05 * torch.randn_like(a))
                b.copy_(a)
    wanted = []
    start = make("qwen3")
    for one in many:
        static = before_first_edit(one)
        kls = []
        with torch.no_grad():
            pairs = zip(exact_logits(plain, static), exact_logits(start, static), strict=True)
            for (_, now), (_, before) in pairs:
                p, q = now.log_softmax(-1), before.log_softmax(-1)
                kls += (p.exp() * (p - q)).sum(-1).tolist()
        wanted.append(sum(kls) / len(kls))
    for one in (model, base):
        attention.prepare(one)
    assert drift(model, base, many, max_tokens=60) == pytest.approx(wanted, rel=1e-9)
    assert drift(base, base, many) == pytest.approx([0] * 4, abs=1e-12)
    assert drift(base, base, []) == []
