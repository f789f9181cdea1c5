"""Parts of a row: each token in one, below all that it sees, and never more than a pass at once."""

from __future__ import annotations

import numpy as np
import pytest

from dynatok_online.rows.parts import Part, cut_row
from dynatok_online.rows.plan import empty_row, plan_rows
from dynatok_online.rows.row import Row
from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory
from tests.simulate import World, simulate


def flat(part: Part) -> list[Part]:
    return [part, *(one for below in part.below for one in flat(below))]


def longest_way(part: Part) -> int:
    return part.row.tokens + max((longest_way(below) for below in part.below), default=0)


def targets(row: Row) -> list[tuple[int, ...]]:
    """Which they are, and the token and position that predicts each."""
    at = row.loss_positions
    arrays = (row.trajectory, row.response_index, row.targets)
    places = (row.input_ids[at], row.position_ids[at])
    return [tuple(int(x) for x in one) for one in zip(*arrays, *places, strict=True)]


def needs(row: Row) -> np.ndarray:
    """[S] tokens that a span depends on, itself included."""
    sees = row.visible
    while ((further := sees @ sees) != sees).any():
        sees = further
    return np.asarray(sees @ np.diff(row.bounds))


def edited(policy: str, prefix: np.ndarray, states: int, segment: int, name: str) -> Trajectory:
    """A slot of 4 tokens after `prefix`; one state a segment."""
    head = len(prefix) + 4
    passes = []
    for k in range(states):
        reuse = [Reuse(0, 0, len(prefix))] if k else []
        if policy == "sticky":
            ends = [head, *(head + (i + 1) * segment - 1 for i in range(states))]
            reuse += [Reuse(o, ends[o], ends[o + 1]) for o in range(k)]
        passes.append(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={},
                start=k * segment,
                stop=(k + 1) * segment,
                num_cached_tokens=0,
                reuse=tuple(reuse),
            )
        )
    rng = np.random.default_rng(int(name))
    pieces = (prefix, *(np.full(4, 50 + 10 * int(name) + k, np.int32) for k in range(states)))
    return Trajectory(
        trajectory_id=name,
        pieces=pieces,
        response=rng.integers(100, 200, states * segment).astype(np.int32),
        logprobs=np.zeros(states * segment, np.float32),
        passes=tuple(passes),
        policy=policy,
    )


@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_every_target_once_and_few_tokens_at_a_time(policy: str) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        prefix = rng.integers(0, 23, 9).astype(np.int32)
        many = [
            simulate(rng, policy, world=World(), late=policy == "exact" and i == 1, prefix=prefix)
            for i in range(3)
        ]
        (row,) = plan_rows(many)
        top = cut_row(row)
        parts = [one for part in top for one in flat(part)]
        assert sum(part.count for part in top) == len(parts)
        assert sum(part.row.tokens for part in parts) == row.tokens
        assert sum(part.row.pairs for part in parts) == row.pairs
        assert sorted(x for part in parts for x in targets(part.row)) == sorted(targets(row))
        if policy == "exact":
            assert max(longest_way(part) for part in top) <= needs(row).max()


def test_an_edited_response_forks_after_the_prefix() -> None:
    prefix = np.arange(40, dtype=np.int32)
    (row,) = plan_rows([edited("exact", prefix, 4, 10, "0")])
    (part,) = cut_row(row)
    # Branches of 4 + 9, 19, 29, 39 tokens; 43 fit below the prefix: 13 + 23, 33, 43.
    assert part.row.tokens == 40
    assert sorted(one.row.tokens for one in part.below) == [33, 13 + 23, 43]
    assert longest_way(part) == 40 + 43


def test_sticky_passes_stay_together_and_trajectories_do_not() -> None:
    prefix = np.arange(40, dtype=np.int32)
    many = [edited("sticky", prefix, 4, 10, name) for name in "01"]
    (row,) = plan_rows(many)
    (part,) = cut_row(row)
    assert [part.row.tokens, *(one.row.tokens for one in part.below)] == [40, 55, 55]
    (alone,) = cut_row(plan_rows(many[:1])[0])
    assert not alone.below


def test_deeper_trees() -> None:
    """A shared prompt, then trajectories that fork again: three parts on one way."""
    prefix = np.arange(40, dtype=np.int32)
    many = []
    for name in "012":
        mine = np.concatenate([prefix, np.full(30, 300 + int(name), np.int32)])
        many.append(edited("exact", mine, 3, 10, name))
    (row,) = plan_rows(many)
    (part,) = cut_row(row)
    assert part.row.tokens == 40
    assert [len(one.below) for one in part.below] == [3, 3, 3]
    assert longest_way(part) == 40 + 30 + 33


def test_a_row_without_forks_is_one_part() -> None:
    for row in (
        empty_row(),
        plan_rows([edited("exact", np.arange(5, dtype=np.int32), 1, 9, "0")])[0],
    ):
        (part,) = cut_row(row)
        assert not part.below
        assert part.row.tokens == row.tokens
