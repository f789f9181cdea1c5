"""The share of an edit that old KV swallows."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.adherence.stale import (
    Swallowed,
    effect,
    ratio,
    recomputed,
    stale_share,
    swallowed,
)
from dynatok_online.spans.ghosts import edited_stretches
from dynatok_online.trajectory import Edit
from tests.models import make
from tests.oracle import exact_logits
from tests.simulate import World, simulate, simulate_moved

pytestmark = pytest.mark.usefixtures("one_thread")


def test_by_hand() -> None:
    found = ratio(np.array([[1.0, 2.0], [2.0, 2.0]]))
    assert found["mean"] == pytest.approx(0.25)
    # Left-out shares are 0 and .5; pseudo-values .5 and 0: mean .25, half 12.706 * .25.
    assert found["half"] == pytest.approx(12.706 * 0.25, rel=1e-3)
    assert found["count"] == 2
    assert ratio(np.array([[1.0, 2.0]])) == {"mean": 0.5, "half": None, "count": 1}
    assert Swallowed(4, 6, 2.0 + 1.0, 3.0 + 1.0).share == pytest.approx(0.25)
    assert Swallowed(4, 6, 0.1, 0.9).share is None
    assert Swallowed(4, 6, -1.0, -4.0).share == pytest.approx(0.75)
    assert ratio(np.zeros((0, 2))) == {"mean": None, "half": None, "count": 0}


def test_a_fresh_prompt_swallows_nothing_and_the_effect_is_that_of_plain_forwards() -> None:
    rng = np.random.default_rng(3)
    world = World(passes=(3, 4), sampled=(2, 4), outside=0)
    many = [simulate(rng, "sticky", block_size=2, world=world) for _ in range(4)]
    many = [
        msgspec.structs.replace(one, edits=(Edit("s0", "x", 1, 1, "schedule"),)) for one in many
    ]
    plain, model = make("qwen3"), make("qwen3")
    attention.prepare(model)
    fresh = [recomputed(one) for one in many]
    assert stale_share(model, fresh)["mean"] == pytest.approx(0, abs=1e-9)
    found = stale_share(model, many)
    assert found["count"] == 4
    assert found["mean"] != pytest.approx(0, abs=1e-3)
    for one in fresh:
        total = 0.0
        for before, after in edited_stretches(one):
            stop = one.passes[after[-1]].stop
            passes = list(one.passes[: before + 1])
            passes[before] = msgspec.structs.replace(passes[before], stop=stop, weight_versions=())
            other = msgspec.structs.replace(
                one,
                passes=tuple(passes),
                response=one.response[:stop],
                logprobs=one.logprobs[:stop],
            )
            with torch.no_grad():
                now = dict(exact_logits(plain, one))
                then = exact_logits(plain, other)[-1][1].log_softmax(-1)
            for k in after:
                for i in range(one.passes[k].start, one.passes[k].stop):
                    y = int(one.response[i])
                    total += float(now[k][i - one.passes[k].start].log_softmax(-1)[y])
                    total -= float(then[i - one.passes[before].start][y])
        assert effect(model, one) == pytest.approx(total, abs=1e-5)
        for part in swallowed(model, one):
            assert part.kept == pytest.approx(part.fresh, abs=1e-6)
    for one in many:
        parts = swallowed(model, one)
        assert [(part.start, part.stop) for part in parts] == [
            (one.passes[after[0]].start, one.passes[after[-1]].stop)
            for _, after in edited_stretches(one)
        ]
        kept, new = (sum(part[at] for part in parts) for at in (2, 3))
        assert kept == pytest.approx(effect(model, one), abs=1e-6)
        assert new == pytest.approx(effect(model, recomputed(one)), abs=1e-6)


def test_what_has_moved_is_computed_anew_as_well() -> None:
    rng = np.random.default_rng(1)
    many = [simulate_moved(rng, world=World(slots=(1, 2), slot=(0, 6))) for _ in range(8)]
    assert any(each.shifts is not msgspec.UNSET for one in many for each in one.passes)
    for one in many:
        assert not any(each.reuse or each.shifts for each in recomputed(one).passes)
