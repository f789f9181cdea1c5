"""Ghosts as numbers: against a pass of their own, leaks, and gradients that do not move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynatok_online import attention
from dynatok_online.rows.plan import Row, needed_tokens, plan_rows
from dynatok_online.training.ghosts import Shared, context_logprobs
from dynatok_online.training.head import ChunkedHead
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from tests.edited import tiny_model, trajectories
from tests.models import make
from tests.oracle import exact_logits, without_edit
from tests.simulate import World, simulate
from tests.training.test_trainer import curve, run_ranks, train

pytestmark = pytest.mark.usefixtures("one_thread")


WORLD = World(passes=(2, 5), sampled=(0, 5), slot=(1, 4))


def batch(seed: int, policy: str) -> list[Trajectory]:
    """Also with several edits, passes that sampled nothing, and passes that were resumed."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, 23, 5).astype(np.int32)
    return [
        simulate(
            rng,
            policy,
            late=policy == "exact" and i == 0,
            block_size=int(rng.choice([1, 2])),
            world=WORLD,
            prefix=prefix if i else None,
            name=str(i),
        )
        for i in range(3)
    ]


def run(model: Any, row: Row, *, shared: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """[M] log-probabilities with gradient, and [M] those of ghosts."""
    head = ChunkedHead(model)
    if shared:
        with Shared(model, head, row) as ghosts:
            given = attention.inputs(row, "cpu", ghosts.layout)
            logits = model(**given, use_cache=False).logits[0]
        before = ghosts.found
    else:
        logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        before = context_logprobs(model, head, row)
    targets = torch.as_tensor(row.targets).long()
    return -F.cross_entropy(logits, targets, reduction="none"), before


@pytest.mark.parametrize(
    ("name", "policy", "dtype"),
    [
        ("qwen3", "exact", torch.float32),
        ("qwen3", "exact", torch.float64),
        ("qwen3", "sticky", torch.float32),
        ("gemma3", "exact", torch.float64),
        pytest.param("gemma3", "sticky", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_equal_to_a_pass_of_its_own(name: str, policy: str, dtype: torch.dtype) -> None:
    plain, model = make(name, dtype), make(name, dtype)
    attention.prepare(model)
    compared = 0
    for seed in range(2 if policy == "sticky" else 4):
        many = batch(seed, policy)
        right = [without_edit(plain, one) for one in many]
        budget = max(needed_tokens(one) for one in many)
        for max_tokens in (budget, 10_000):
            for row in plan_rows(many, max_tokens=max_tokens, ghosts=True):
                expected = np.array(
                    [right[t][i] for t, i in zip(row.trajectory, row.response_index, strict=True)]
                )
                for shared in (True, False):
                    found = run(model, row, shared=shared)[1].numpy()
                    assert (np.isnan(found) == np.isnan(expected)).all()
                    there = ~np.isnan(found)
                    scale = np.abs(expected[there]).max(initial=1.0)
                    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
                    assert np.abs(found - expected)[there].max(initial=0) < tolerance * scale
                    compared += int(there.sum())
    assert compared > 50


@pytest.mark.parametrize("attend", ["dense", "concat"])
def test_rows_smaller_than_a_trajectory(attend: str) -> None:
    """The pass before an edit lies in another row: what is missing of it is run again."""
    plain, model = make("qwen3", torch.float64), make("qwen3", torch.float64)
    attention.prepare(model, attend)
    missing = 0
    for seed in range(4):
        one = batch(seed, "exact")[1]
        right = without_edit(plain, one)
        for row in plan_rows([one], max_tokens=needed_tokens(one), ghosts=True):
            if row.ghosts is None:
                continue
            missing += row.ghosts.row.tokens > len(row.ghosts.targets)
            for shared in (True, False):
                found = run(model, row, shared=shared)[1].numpy()
                assert np.allclose(found, right[row.response_index], atol=1e-12, equal_nan=True)
    assert missing


@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_gradients_do_not_move(policy: str) -> None:
    model = make("qwen3", torch.float32)
    attention.prepare(model)
    for seed in range(3):
        many = batch(seed, policy)
        found = []
        for ghosts in (False, True):
            model.zero_grad()
            total = 0.0
            for row in plan_rows(many, ghosts=ghosts):
                loss = -run(model, row)[0].sum()
                loss.backward()
                total += loss.item()
            grads = torch.cat([p.grad.flatten() for p in model.parameters()])
            found.append((total, grads.clone()))
        (loss, grads), (other, others) = found
        assert other == pytest.approx(loss, rel=1e-6)
        assert (grads - others).norm() <= 1e-6 * grads.norm()


def test_ghosts_leak_nothing() -> None:
    """Other ghost tokens change no real result and no other ghost, by no bit."""
    model = make("qwen3", torch.float64)
    attention.prepare(model)
    moved = 0
    for seed in range(4):
        (row,) = plan_rows(batch(seed, "sticky" if seed % 2 else "exact"), ghosts=True)
        if row.ghosts is None:
            continue
        ghosts = row.ghosts.row
        real, before = run(model, row)
        span = np.searchsorted(ghosts.bounds, row.tokens + ghosts.loss_positions, "right")
        for i in range(0, ghosts.tokens, 3):
            ids = ghosts.input_ids.copy()
            ids[i] = (ids[i] + 1) % 23
            other = with_ghost_tokens(row, ids)
            same, after = run(model, other)
            assert torch.equal(real, same)
            mine = np.searchsorted(ghosts.bounds, row.tokens + i, "right")
            changed = (before != after)[row.ghosts.targets].numpy()
            later = (span == mine) & (ghosts.loss_positions >= i)
            assert (changed == later).all()
            moved += int(changed.sum())
    assert moved


def with_ghost_tokens(row: Row, ids: np.ndarray) -> Row:
    """`row` with other ghost tokens; the targets stay."""
    assert row.ghosts is not None
    return replace(row, ghosts=replace(row.ghosts, row=replace(row.ghosts.row, input_ids=ids)))


def test_the_credit_of_a_token_by_hand() -> None:
    """An edit that changes nothing owes nothing: delta is 0 where the state says the same."""
    model = make("qwen3", torch.float64)
    attention.prepare(model)
    pieces = tuple(np.array(one, np.int32) for one in ([1, 2, 3], [4, 5], [4, 5], [6, 7]))
    one = Trajectory(
        trajectory_id="t",
        pieces=pieces,
        response=np.arange(8, 17, dtype=np.int32),
        logprobs=np.zeros(9, np.float32),
        passes=tuple(
            Pass(layout=(0, k + 1, RESPONSE), states={}, start=3 * k, stop=3 * k + 3,
                 num_cached_tokens=0)
            for k in range(3)
        ),
    )  # fmt: skip
    (row,) = plan_rows([one], ghosts=True)
    now, before = run(model, row)
    delta = (now - before).detach().numpy()
    assert np.isnan(delta[:3]).all()
    assert np.abs(delta[3:6]).max() < 1e-6
    assert np.abs(delta[6:]).min() > 1e-4


def test_the_model_is_left_as_it_was() -> None:
    model = make("qwen3", torch.float32).train()
    attention.prepare(model)
    (row,) = plan_rows(batch(0, "exact"), ghosts=True)
    context_logprobs(model, ChunkedHead(model), row)
    run(model, row)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 8, "max_row_tokens": 130},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    ],
    ids=lambda cut: next(iter(reversed(cut))),
)
@pytest.mark.parametrize("objective", ["context"])
def test_credit_is_the_same_however_a_batch_is_cut(tmp_path, whole, objective, cut) -> None:
    """Parts, micro batches and ranks: see the table in `test_objectives`."""
    wanted = whole(str(objective), objective)
    other = train(tmp_path, objective=objective, **cut)
    assert curve(other) == pytest.approx(curve(wanted), rel=3e-6)
    assert curve(other, "grad_norm") == pytest.approx(curve(wanted, "grad_norm"), rel=2e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three steps of eight trajectories, each in one row."""
    known: dict[str, Any] = {}

    def of(name: str, objective: Any) -> Any:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[name] = train(folder, objective=objective, per_device_train_batch_size=8)
        return known[name]

    return of


def test_the_first_step_by_hand(tmp_path) -> None:
    """Contrast is known in full at step one: against plain forwards, one per pass and ghost."""
    trained = train(tmp_path, objective="contrast", per_device_train_batch_size=8, max_steps=1)
    model, total, count = tiny_model(), 0.0, 0
    for one in trajectories(8):
        before = without_edit(model, one)
        with torch.no_grad():
            passes = exact_logits(model, one)
        for k, logits in passes:
            part = one.passes[k]
            for i in range(part.start, part.stop):
                logp = float(logits[i - part.start].log_softmax(-1)[one.response[i]])
                delta = 0.0 if np.isnan(before[i]) else logp - before[i]
                total -= logp * part.scores["slot"] * 2 / (1 + np.exp(-delta))
                count += 1
    assert curve(trained)[0] == pytest.approx(total / count, rel=1e-5)


def test_credit_needs_spans(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"context needs .*only strategy packed computes"):
        train(tmp_path, objective="context", strategy="truncated")


@pytest.mark.slow
def test_credit_is_the_same_on_every_number_of_ranks(tmp_path) -> None:
    """Two ranks alone, and under ZeRO 2 and 3: where weights are in parts, ghosts run first."""
    common = {"objective": "contrast", "max_steps": 5}
    single = run_ranks(tmp_path, 1, share=8, **common)["loss"]
    for zero in (None, 2, 3):
        got = run_ranks(tmp_path, 2, share=4, zero=zero, **common)["loss"]
        assert np.abs(np.array(got) / np.array(single) - 1).max() < 5e-6
