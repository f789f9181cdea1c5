"""What a target must not see does not move it by one bit; what it must see does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.trajectory import RESPONSE, Trajectory
from tests.models import make
from tests.simulate import World, simulate


def logits_of(model: Any, row: Row) -> torch.Tensor:
    with torch.no_grad():
        return model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]


def reach(row: Row, windows: list[int | None]) -> np.ndarray:
    """[N, N] which tokens each token depends on through all layers, from the row's mask."""
    layout = attention.Layout(row)
    out = np.eye(row.tokens, dtype=bool)
    for window in windows:
        out = layout.mask(window) @ out
    return out


@pytest.mark.parametrize("policy", ["exact", "sticky"])
@pytest.mark.parametrize(
    ("name", "windows"), [("qwen3", [None, None]), ("gemma3", [5, None]), ("mistral", [5, 5])]
)
def test_rows_leak_nothing(name: str, windows: list[int | None], policy: str) -> None:
    model = make(name)
    attention.prepare(model)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        many = [simulate(rng, policy, name=str(i)) for i in range(2)]
        (row,) = plan_rows(many)
        depends = reach(row, windows)[row.loss_positions]
        before = logits_of(model, row)
        for i in rng.choice(row.tokens, 6, replace=False):
            ids = row.input_ids.copy()
            ids[i] = (ids[i] + 1) % 23
            moved = Row(**{**vars(row), "input_ids": ids})
            changed = (logits_of(model, moved) != before).any(1).numpy()
            assert (changed == depends[:, i]).all()


@pytest.mark.parametrize("late", [False, True])
def test_targets_see_their_own_pass_and_no_other(late: bool) -> None:
    """Straight from the trajectory: changing a prompt piece moves the targets of the passes
    whose prompt it stands in, and no others; so for response tokens and what came before them."""
    model = make("llama")
    attention.prepare(model)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        world = World(vocabulary=22, outside=0)
        one = simulate(rng, late=late, world=world)
        before = targets_of(model, one)
        owner = np.concatenate([np.full(p.stop - p.start, k) for k, p in enumerate(one.passes)])
        for i, piece in enumerate(one.pieces):
            if not len(piece):
                continue
            pieces = list(one.pieces)
            pieces[i] = piece.copy()
            pieces[i][rng.integers(len(piece))] = 22  # a token that stands nowhere else
            changed = np.abs(targets_of(model, replace(one, pieces=tuple(pieces))) - before).max(1)
            sees = np.array([i in one.passes[k].layout for k in owner])
            assert (changed[~sees] <= 1e-12).all()
            assert (changed[sees] > 1e-9).all()
        for r in rng.choice(len(one.response), min(4, len(one.response)), replace=False):
            response = one.response.copy()
            response[r] = 22
            changed = np.abs(targets_of(model, replace(one, response=response)) - before).max(1)
            assert (changed[: r + 1] <= 1e-12).all()
            assert (changed[r + 1 :] > 1e-9).all()


def targets_of(model: Any, one: Trajectory) -> np.ndarray:
    """[R, V] logits by response index."""
    out = np.zeros((len(one.response), 23))
    for row in plan_rows([one]):
        out[row.response_index] = logits_of(model, row).numpy()
    return out


def replace(one: Trajectory, **changes: Any) -> Trajectory:
    """`one` with other tokens; reuse records of head-slot texts hold for any tokens, since the
    same piece changes wherever it stands."""
    import msgspec

    assert all(RESPONSE in p.layout for p in one.passes)
    return msgspec.structs.replace(one, **changes)
