"""Rows: every target once, budgets, sharing, balance."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dynatok_online.rows.plan import STRATEGIES, empty_row, needed_tokens, plan_ranks, plan_rows
from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory, VersionRun
from tests.simulate import World, simulate


def batch(seed: int, count: int = 6) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, 5, 4).astype(np.int32)
    return [
        simulate(
            rng,
            "sticky" if i % 3 == 2 else "exact",
            late=i % 3 == 0,
            prefix=prefix if i % 2 else None,
            name=str(i),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("max_tokens", [120, 10_000])
def test_every_response_token_is_a_target_once(strategy: str, max_tokens: int) -> None:
    for seed in range(8):
        many = batch(seed)
        weights = [
            np.random.default_rng(i).random(len(t.response)).astype(np.float32)
            for i, t in enumerate(many)
        ]
        rows = plan_rows(many, weights, max_tokens, strategy=strategy)
        found = sorted(
            (int(t), int(r))
            for row in rows
            for t, r in zip(row.trajectory, row.response_index, strict=True)
        )
        assert found == [(t, r) for t, one in enumerate(many) for r in range(len(one.response))]
        for row in rows:
            assert row.tokens <= max_tokens
            for i, (t, r) in enumerate(zip(row.trajectory, row.response_index, strict=True)):
                assert row.targets[i] == many[t].response[r]
                assert row.logprobs[i] == many[t].logprobs[r]
                assert row.weights[i] == weights[t][r]
                assert row.versions[i] == many[t].versions()[r]


def test_pairs_are_the_mask() -> None:
    from dynatok_online.attention.layout import Layout

    for row in plan_rows(batch(1), max_tokens=150):
        assert row.pairs == Layout(row).mask(None).sum()


def test_a_trajectory_over_budget_is_split_between_passes() -> None:
    rng = np.random.default_rng(0)
    world = World(passes=(6, 6), sampled=(4, 7))
    one = simulate(rng, world=world)
    whole = plan_rows([one])[0].tokens
    rows = plan_rows([one], max_tokens=whole - 1)
    assert len(rows) > 1
    assert max(row.tokens for row in rows) < whole


def test_a_pass_over_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"pass 0 needs \d+ tokens, but a row holds 3"):
        plan_rows(batch(0), max_tokens=3)


def test_trajectories_that_share_a_prefix_share_a_row() -> None:
    def make(family: int, name: int) -> Trajectory:
        prefix = np.full(40, family, np.int32)
        response = np.arange(100 + name, 110 + name, dtype=np.int32)
        return Trajectory(
            trajectory_id=str(name),
            pieces=(prefix,),
            response=response,
            logprobs=np.zeros(10, np.float32),
            passes=(Pass(layout=(0, RESPONSE), states={}, start=0, stop=10, num_cached_tokens=0),),
        )

    many = [make(i % 4, i) for i in range(16)]
    rows = plan_rows(many, max_tokens=80)
    assert len(rows) == 4
    for row in rows:
        assert len({int(t) % 4 for t in row.trajectory}) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_get_equally_many_rows_of_similar_cost(ranks: int) -> None:
    rng = np.random.default_rng(5)
    world = World(passes=(1, 4), sampled=(1, 20), outside=0)
    many = [simulate(rng, world=world, name=str(i)) for i in range(60)]
    cost = 1 / 100
    plan = plan_ranks(many, max_tokens=700, ranks=ranks, pair_cost=cost)
    assert len({len(rows) for rows in plan}) == 1
    assert sum(len(row.targets) for rows in plan for row in rows) == sum(
        len(t.response) for t in many
    )
    totals = [sum(row.tokens + cost * row.pairs for row in rows) for rows in plan]
    assert max(totals) <= 1.25 * (sum(totals) / ranks)


def test_more_ranks_than_passes() -> None:
    plan = plan_ranks(batch(0, 1), ranks=9)
    assert [len(rows) for rows in plan] == [1] * 9
    assert sum(len(rows[0].targets) > 0 for rows in plan) >= 1
    assert empty_row().tokens == 1


def test_errors_say_what_to_write() -> None:
    with pytest.raises(ValueError, match="use one of packed, truncated, snapshot, static"):
        plan_rows(batch(0), strategy="fast")
    with pytest.raises(ValueError, match="they must be aligned"):
        plan_rows(batch(0, 1), [np.zeros(1000, np.float32)])
    with pytest.raises(ValueError, match="but 0 arrays of weights"):
        plan_rows(batch(0, 1), [])


def test_no_trajectories_no_rows() -> None:
    assert plan_rows([]) == []
    assert plan_ranks([], ranks=2) == [[], []]


def test_planning_16k_tokens_is_quick() -> None:
    """64 trajectories, 16k tokens: about 20 ms of CPU; a forward of such a row takes seconds."""
    rng = np.random.default_rng(0)

    def words(n: int) -> np.ndarray:
        return rng.integers(0, 1000, n).astype(np.int32)

    system, many = words(64), []
    for t in range(64):
        passes = tuple(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={},
                start=k * 20,
                stop=(k + 1) * 20,
                num_cached_tokens=64 if k else 0,
                reuse=(Reuse(0, 0, 64),) if k else (),
                weight_versions=(VersionRun(0, 20),),
            )
            for k in range(4)
        )
        pieces = (system, *(words(8) for _ in range(4)))
        many.append(
            Trajectory(
                trajectory_id=str(t),
                pieces=pieces,
                response=words(80),
                logprobs=np.zeros(80, np.float32),
                passes=passes,
            )
        )
    seconds = []
    for _ in range(3):
        began = time.process_time()
        (row,) = plan_rows(many, max_tokens=16384)
        seconds.append(time.process_time() - began)
    assert 14_500 < row.tokens <= 64 + 64 * sum(8 + 20 * k - 1 for k in range(1, 5))
    assert min(seconds) < 0.15


@pytest.mark.parametrize("strategy", ["packed", "truncated", "snapshot"])
def test_the_smallest_budget_is_what_the_longest_pass_depends_on(strategy: str) -> None:
    for one in batch(3):
        needed = needed_tokens(one, strategy)
        plan_rows([one], max_tokens=needed, strategy=strategy)
        with pytest.raises(ValueError, match="but a row"):
            plan_rows([one], max_tokens=needed - 1, strategy=strategy)
