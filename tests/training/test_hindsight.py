"""Earlier text under later states: a plain forward per pass, no token more, and no leak."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.objectives.written import objective_of
from dynatok_online.rows.row import Row
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.trajectory import Earlier, Trajectory
from tests.edited import responses, tiny_model
from tests.oracle import text_of
from tests.training.table import ACCUMULATED, BUDGETS, MEMORY, run

pytestmark = pytest.mark.usefixtures("one_thread")

THRESHOLDS = (1.0, 0.5)


def plain_loss(model: Any, many: list[Trajectory], threshold: float) -> torch.Tensor:
    """A forward of [prompt in the state of a pass, its text, all text before it] for every pass:
    the sum over what was sampled there, and over earlier text that obeys, over their number."""
    losses = []
    for one in many:
        for k, part in enumerate(one.passes):
            text = text_of(one, k) + one.response[part.start : part.stop].tolist()
            ids = torch.tensor([text])
            logp = model(input_ids=ids[:, :-1], use_cache=False).logits[0].log_softmax(-1)
            first = len(text) - part.stop
            pieces = [(p.start, p.stop) for p in part.earlier or () if p.score >= threshold]
            for start, stop in [*pieces, (part.start, part.stop)]:
                at = torch.arange(first + start, first + stop)
                losses.append(-logp[at - 1, ids[0, at]])
    return torch.cat(losses).mean()


@cache
def wanted(threshold: float) -> tuple[float, np.ndarray]:
    model = tiny_model().double()
    loss = plain_loss(model, responses(), threshold)
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads).numpy()


CUTS = list(product(BUDGETS, ACCUMULATED, MEMORY))
THIN = (256, 4, "pass"), (16384, 1, "row")


@pytest.mark.parametrize(
    "cut",
    [pytest.param(c, marks=[] if c in THIN else [pytest.mark.slow], id=str(c)) for c in CUTS],
)
def test_equal_to_a_plain_forward(cut: tuple[int, int, str]) -> None:
    budget, accumulated, memory = cut
    for threshold in THRESHOLDS:
        losses, gradients = run(
            {"name": "hindsight", "threshold": threshold},
            max_steps=1,
            max_row_tokens=budget,
            gradient_accumulation_steps=accumulated,
            memory=memory,
        )
        loss, right = wanted(threshold)
        assert losses[0] == pytest.approx(loss, rel=1e-6)
        assert np.linalg.norm(gradients[0] - right) < 1e-6 * np.linalg.norm(right)


def test_gradient_against_finite_differences() -> None:
    """Along a direction at random: the trainer's gradient, and the plain forwards' loss."""
    _, gradients = run("hindsight", max_steps=1)
    model = tiny_model().double()
    generator = torch.Generator().manual_seed(1)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    step, found = 1e-4, []  # its norms are float32 inside
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(model.parameters(), way, strict=True):
                p.add_(sign * step * d)
            found.append(plain_loss(model, responses(), 1.0).item())
    along = float(gradients[0] @ torch.cat([d.flatten() for d in way]).numpy())
    assert along == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4)


def rows(objective: Any, many: list[Trajectory]) -> list[Row]:
    found: list[Row] = TrajectoryCollator(objective=objective_of(objective))(many)["rows"]
    return found


def test_not_one_token_more() -> None:
    """What runs is what runs without it; only targets are added."""
    many = responses()
    (before,), (after,) = rows("sft", many), rows("hindsight", many)
    assert after.input_ids.tolist() == before.input_ids.tolist()
    assert after.position_ids.tolist() == before.position_ids.tolist()
    assert after.bounds.tolist() == before.bounds.tolist()
    assert (after.visible == before.visible).all()
    pieces = [p for one in many for k in one.passes for p in k.earlier or () if p.score == 1]
    assert len(after.targets) - len(before.targets) == sum(p.stop - p.start for p in pieces) > 100


def test_what_a_target_may_not_see_moves_nothing() -> None:
    """The state that the text was written under, and what was written after it."""
    model = tiny_model().double()
    attention.prepare(model)
    (one, *_) = responses()
    assert one.passes[1].earlier
    piece = one.passes[1].earlier[0]

    def seen(given: Trajectory) -> torch.Tensor:
        (row,) = rows("hindsight", [given])
        mine = row.trajectory == 1
        assert row.targets[mine].tolist() == one.response[piece.start : piece.stop].tolist()
        with torch.no_grad():
            logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        return logits[torch.as_tensor(mine)]

    pieces = [piece.copy() for piece in one.pieces]
    pieces[1][:] = (pieces[1] + 1) % 50
    later = one.response.copy()
    later[piece.stop :] = (later[piece.stop :] + 1) % 50
    before = seen(one)
    for other in (
        msgspec.structs.replace(one, pieces=tuple(pieces)),
        msgspec.structs.replace(one, response=later),
    ):
        assert torch.allclose(seen(other), before, atol=1e-12)
    pieces = [piece.copy() for piece in one.pieces]
    pieces[2][0] = (pieces[2][0] + 1) % 50  # the state that it is a target under
    moved = seen(msgspec.structs.replace(one, pieces=tuple(pieces))) - before
    assert moved.abs().min() > 0


def test_what_cannot_be_is_refused_by_name() -> None:
    (one, *_) = responses()
    unknown = [msgspec.structs.replace(p, earlier=msgspec.UNSET) for p in one.passes]
    old = msgspec.structs.replace(one, passes=tuple(unknown))
    with pytest.raises(ValueError, match=r"hindsight: trajectory 0, pass 0 has no verdict on the"):
        rows("hindsight", [old])
    assert len(rows("sft", [old])) == 1
    sticky = msgspec.structs.replace(one, policy="sticky")
    with pytest.raises(ValueError, match="written with reuse sticky, which computes no earlier"):
        rows("hindsight", [sticky])
    late = [msgspec.structs.replace(p, layout=p.layout[::-1]) for p in one.passes]
    with pytest.raises(ValueError, match="its prompt goes on behind the response, so pass 1"):
        rows("hindsight", [msgspec.structs.replace(one, passes=tuple(late))])
    with pytest.raises(ValueError, match="needs earlier text under later states, which only"):
        run("hindsight", strategy="truncated")


def test_a_text_that_nothing_came_before() -> None:
    (one, *_) = responses()
    alone = [msgspec.structs.replace(p, earlier=()) for p in one.passes]
    given = msgspec.structs.replace(one, passes=tuple(alone))
    assert len(rows("hindsight", [given])[0].targets) == len(one.response)


def test_by_hand() -> None:
    """The worked example of `objectives/hindsight.py`."""
    (one, *_) = responses()
    first, second = one.passes[:2]
    passes = (
        msgspec.structs.replace(first, stop=2, weight_versions=()),
        msgspec.structs.replace(
            second, start=2, stop=3, weight_versions=(), earlier=(Earlier(1, 2, 1.0),)
        ),
    )
    given = msgspec.structs.replace(
        one, response=one.response[:3], logprobs=one.logprobs[:3], passes=passes
    )
    (row,) = rows({"name": "hindsight", "weight": 0.5}, [given])
    a, b, c = given.response.tolist()
    found = zip(row.targets.tolist(), row.weights.tolist(), row.columns["score"], strict=True)
    mine: list[Any] = []
    theirs: list[Any] = []
    for (target, weight, score), of in zip(found, row.trajectory, strict=True):
        (theirs if of else mine).append((target, weight, round(float(score), 3)))
    kept = [round(min(p.scores.values()), 3) for p in passes]
    assert sorted(mine) == sorted([(a, 1.0, kept[0]), (b, 1.0, kept[0]), (c, 1.0, kept[1])])
    assert theirs == [(b, 0.5, 1.0)]
