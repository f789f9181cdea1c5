"""What is known of a whole trajectory before it is trained on, against plain forwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.objectives.written import objective_of
from dynatok_online.rows.plan import Row, needed_tokens
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.training.head import ChunkedHead
from dynatok_online.training.scored import Scoring
from dynatok_online.trajectory import Trajectory
from tests.models import make
from tests.oracle import attention_on_the_prompt, exact_logits
from tests.simulate import World, simulate

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(passes=(2, 5), sampled=(0, 5), slot=(1, 4))


def responses(policy: str = "exact") -> list[Trajectory]:
    """The slot stands before the response, and in the first one behind it."""
    rng = np.random.default_rng(3)
    return [
        simulate(rng, policy, late=not i, block_size=1, world=WORLD, name=str(i)) for i in range(3)
    ]


def planned(many: list[Trajectory]) -> list[Row]:
    collator = TrajectoryCollator(objective=objective_of("sstoken"))
    rows: list[Row] = collator(many)["rows"]
    return rows


def logprobs(model: Any, one: Trajectory) -> np.ndarray:
    """[R] by a plain forward per pass."""
    out = np.zeros(len(one.response))
    with torch.no_grad():
        passes = exact_logits(model, one)
    for k, logits in passes:
        part = one.passes[k]
        for i in range(part.start, part.stop):
            out[i] = logits[i - part.start].log_softmax(-1)[one.response[i]]
    return out


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gpt_oss"])
def test_attention_on_the_prompt_is_that_of_a_plain_forward(name: str) -> None:
    """Also with a window, and with sinks, which take their share."""
    dtype = torch.float32 if name == "gpt_oss" else torch.float64
    eager, model = make(name, dtype), make(name, dtype)
    eager.set_attn_implementation("eager")
    attention.prepare(model)
    many = responses()
    scoring = Scoring(objective_of("sstoken"), model, ChunkedHead(model), None)
    right = [(logprobs(eager, one), attention_on_the_prompt(eager, one)) for one in many]
    compared = 0
    for row in planned(many):
        logp, mass = scoring._run(row)
        assert mass is not None
        for i, (t, index) in enumerate(zip(row.trajectory, row.response_index, strict=True)):
            # transformers' eager softmax is in float32 whatever comes in
            assert logp[i] == pytest.approx(right[t][0][index], abs=2e-6)
            assert mass[i] == pytest.approx(right[t][1][index], abs=2e-6)
            compared += 1
    assert compared > 20
    assert 0.05 < np.mean([one[1].mean() for one in right]) < 0.95


def test_sticky_rows_have_shares_too() -> None:
    """What a token sees is what it attends to: with the prompt's tokens hidden, nothing is left."""
    model = make("qwen3")
    attention.prepare(model)
    scoring = Scoring(objective_of("sstoken"), model, ChunkedHead(model), None)
    for row in planned(responses("sticky")):
        _, mass = scoring._run(row)
        assert mass is not None
        assert (mass > 0).all()
        assert (mass <= 1 + 1e-12).all()
        first = row.response_index == 0
        assert mass[first] == pytest.approx(1.0), "nothing has been written yet"


def test_a_split_trajectory_is_refused() -> None:
    many = responses()[1:]
    least = max(needed_tokens(one) for one in many)
    collator = TrajectoryCollator(max_row_tokens=least, objective=objective_of("sstoken"))
    with pytest.raises(ValueError, match=r"sstoken compares .* split trajectory \d; raise it to"):
        collator(many)
