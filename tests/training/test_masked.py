"""Hidden inputs: the same for all copies of a token, and a plain forward over them."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from dynatok_online.objectives.masked import Masked
from dynatok_online.objectives.written import objective_of
from dynatok_online.rows.apart import Named, draws, set_apart
from dynatok_online.rows.plan import empty_row, plan_ranks, plan_rows
from dynatok_online.training.masked import hide, masking_token
from dynatok_online.trajectory import Trajectory
from tests.edited import responses, tiny_model
from tests.oracle import exact_logits
from tests.simulate import World, simulate
from tests.training.table import run, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TOKEN, SEED = 49, 42


def hidden(one: Trajectory, step: int = 0) -> Trajectory:
    """With what is hidden in a step replaced, by trajectory and index alone."""
    (row,) = plan_ranks([one], apart=True)[0]
    numbers = dict(zip(row.written.tolist(), row.input_ids.tolist(), strict=True))
    assert len(numbers) > len(one.response) - 1
    own = Named([one])._numbers
    chosen = draws(own, SEED * 1_000_003 + step) < 0.4
    return msgspec.structs.replace(one, response=np.where(chosen, TOKEN, one.response))


@pytest.mark.parametrize("strategy", ["packed", "truncated"])
@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_rows_say_which_response_token_is_which(policy: str, strategy: str) -> None:
    rng = np.random.default_rng(5)
    world = World(passes=(2, 5), sampled=(0, 5), slot=(1, 4))
    many = [simulate(rng, policy, world=world, name=str(i)) for i in range(4)]
    many.append(msgspec.structs.replace(many[0], trajectory_id="twin"))
    named = Named(many)
    token = dict(zip(named._numbers.tolist(), named._ids.tolist(), strict=True))
    assert len(token) == sum(len(one.response) for one in many), "no number stands twice"
    ghosts = strategy == "packed"
    (plain,) = plan_ranks(many, strategy=strategy, ghosts=ghosts)
    (rows,) = plan_ranks(many, strategy=strategy, ghosts=ghosts, apart=True)
    seen: set[int] = set()
    for row in [*rows, *(row.ghosts.row for row in rows if row.ghosts)]:
        ours = row.written >= 0
        assert [token[i] for i in row.written[ours].tolist()] == row.input_ids[ours].tolist()
        assert (row.input_ids >= 0).all()
        seen |= set(row.written[ours].tolist())
    assert len(seen) > 0.5 * len(token)
    assert sum(len(row.targets) for row in rows) == sum(len(row.targets) for row in plain)
    for row in rows:
        for target, t, index in zip(row.targets, row.trajectory, row.response_index, strict=True):
            assert target == many[t].response[index], "targets stay"


def test_equal_to_a_plain_forward_over_what_is_left() -> None:
    data, model = responses(), tiny_model().double()
    total, count, gone = 0.0, 0, 0
    for one in data:
        seen = hidden(one)
        gone += int((seen.response != one.response).sum())
        with torch.no_grad():
            logits = torch.cat([logits for _, logits in exact_logits(model, seen)])
        ids = torch.as_tensor(one.response.astype(np.int64))
        total -= float(logits.log_softmax(-1).gather(-1, ids[:, None]).sum())
        count += len(ids)
    assert 0.3 < gone / count < 0.5
    losses, _ = run({"name": "masked", "warm": 0.0, "token": TOKEN})
    assert losses[0] == pytest.approx(total / count, rel=1e-6)
    plain, _ = run("sft")
    assert abs(losses[0] - plain[0]) > 1e-3
    begins, _ = run({"name": "masked", "token": TOKEN})
    assert begins[0] == pytest.approx(plain[0], rel=1e-9), "in the first step nothing is hidden"
    assert begins[1] != pytest.approx(plain[1], rel=1e-6)


def test_evaluation_sees_everything() -> None:
    losses = []
    for objective in ("sft", {"name": "masked", "warm": 0.0, "token": TOKEN}):
        made = trainer(objective, per_device_eval_batch_size=8)
        losses.append(made.evaluate(responses())["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_draws_depend_on_number_and_seed_alone() -> None:
    numbers = np.arange(20_000)
    one, other = draws(numbers, 1), draws(numbers, 2)
    assert np.array_equal(one[::-1], draws(numbers[::-1], 1))
    for found in (one, other):
        assert found.min() >= 0
        assert found.max() < 1
        assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert draws(np.array([-1]), 1)[0] > 1


def test_a_row_without_names_stays() -> None:
    """Those of the scorer, and the empty ones."""
    (row,) = plan_rows(responses()[:1])
    assert len(row.written) == 0
    for one in (row, empty_row()):
        assert hide(one, 1.0, TOKEN, 0) is one
    ours = set_apart(responses()[:2])
    assert ours[1].response[0] == ours[0].response[-1] - 1


def test_what_hides_tokens() -> None:
    tokenizer = SimpleNamespace(mask_token_id=None, unk_token_id=3, pad_token_id=0)
    assert masking_token(Masked(), tokenizer, 10) == 3
    assert masking_token(Masked(token=7), tokenizer, 10) == 7
    with pytest.raises(ValueError, match="and there is none; write one that texts do without"):
        masking_token(Masked(), None, 10)
    with pytest.raises(ValueError, match="12 is not in a vocabulary of 10"):
        masking_token(Masked(token=12), None, 10)
    assert objective_of("masked").masked == Masked()
    (row,) = plan_ranks(responses()[:1], apart=True)[0]
    assert (hide(row, 1.0, TOKEN, 0).input_ids[row.written >= 0] == TOKEN).all()
