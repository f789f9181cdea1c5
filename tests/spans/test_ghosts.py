"""Ghosts as spans: leaves that nobody sees, in a graph that is otherwise what it was."""

from __future__ import annotations

import numpy as np
import pytest

from dynatok_online.arrays import ranges
from dynatok_online.rows.plan import plan_ranks, plan_rows
from dynatok_online.spans.build import build_spans
from dynatok_online.spans.ghosts import edited_stretches
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from tests.simulate import World, simulate


def response(*layouts: int, sampled: int = 3, policy: str = "exact") -> Trajectory:
    """One pass a layout: the piece of its slot, between a static piece and the response."""
    count = len(layouts)
    return Trajectory(
        trajectory_id="t",
        pieces=(
            np.arange(4, dtype=np.int32),
            *(np.full(2, 10 + i, np.int32) for i in range(max(layouts))),
        ),
        response=np.arange(100, 100 + count * sampled, dtype=np.int32),
        logprobs=np.zeros(count * sampled, np.float32),
        passes=tuple(
            Pass(
                layout=(0, one, RESPONSE),
                states={},
                start=k * sampled,
                stop=(k + 1) * sampled,
                num_cached_tokens=0,
            )
            for k, one in enumerate(layouts)
        ),
        policy=policy,
    )


def many(seed: int, count: int = 4) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, 23, 5).astype(np.int32)
    return [
        simulate(
            rng,
            "sticky" if i % 2 else "exact",
            late=i == 0,
            block_size=1 + i % 2,
            prefix=prefix if i else None,
            name=str(i),
        )
        for i in range(count)
    ]


def test_passes_of_one_state_are_one_stretch() -> None:
    assert edited_stretches(response(1, 1, 2, 2, 1)) == [(1, [2, 3]), (3, [4])]
    assert edited_stretches(response(1, 1)) == []


def test_a_ghost_goes_on_with_the_pass_before_the_edit() -> None:
    """By hand: the prompt a is 0 1 2 3 10 10, then 100 101 102; the edit comes before 103."""
    spans = build_spans([response(1, 2)], ghosts=True)
    ghosts = spans.ghosts
    assert ghosts is not None
    (own,) = [s for s in ghosts.spans if s not in spans.reader_spans]
    at = slice(spans.bounds[own], spans.bounds[own + 1])
    assert spans.input_ids[at].tolist() == [102, 103, 104]
    assert spans.position_ids[at].tolist() == [8, 9, 10]
    seen = ranges(spans.bounds, spans.seen[spans.seen_bounds[own] : spans.seen_bounds[own + 1]])
    assert spans.input_ids[seen].tolist() == [0, 1, 2, 3, 10, 10, 100, 101]
    assert spans.response_index[ghosts.targets].tolist() == [3, 4, 5]
    assert spans.input_ids[ghosts.loss_positions].tolist() == [102, 103, 104]


def test_a_toggle_does_not_become_its_own_ghost() -> None:
    """A, B, A: what the last pass feeds after the first one's text is the ghost's text, too."""
    one = response(1, 2, 1)
    spans = build_spans([one], ghosts=True)
    assert spans.ghosts is not None
    held = set(spans.reader_spans.tolist())
    own = [s for s in spans.ghosts.spans.tolist() if s not in held]
    assert len(own) == 2
    assert len(spans.input_ids) == len(build_spans([one]).input_ids) + 6


@pytest.mark.parametrize("seed", range(12))
def test_nobody_sees_a_ghost_and_real_spans_stay(seed: int) -> None:
    trajectories = many(seed)
    plain, spans = build_spans(trajectories), build_spans(trajectories, ghosts=True)
    ghosts = spans.ghosts
    assert ghosts is not None
    real = np.zeros(len(spans.lengths), bool)
    real[spans.reader_spans] = True
    real[spans.seen[ranges(spans.seen_bounds, np.flatnonzero(real))]] = True
    assert int(spans.lengths[real].sum()) == int(plain.lengths.sum())
    owner = np.repeat(np.arange(len(spans.lengths)), np.diff(spans.seen_bounds))
    assert real[spans.seen[real[owner]]].all()  # what is real sees no ghost
    # Every token after the first edit has one prediction, under the tokens before it.
    wanted = {
        (t, i)
        for t, one in enumerate(trajectories)
        for _, after in edited_stretches(one)
        for i in range(one.passes[after[0]].start, one.passes[after[-1]].stop)
    }
    trajectory = spans.reader_trajectory[spans.loss_reader[ghosts.targets]]
    index = spans.response_index[ghosts.targets]
    assert sorted(zip(trajectory.tolist(), index.tolist(), strict=True)) == sorted(wanted)
    for t, i, at in zip(trajectory, index, ghosts.loss_positions, strict=True):
        assert spans.input_ids[at] == trajectories[t].response[i - 1]


@pytest.mark.parametrize("max_tokens", [130, 10_000])
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_what_they_are_without(seed: int, max_tokens: int) -> None:
    trajectories = many(seed)
    plain = plan_rows(trajectories, max_tokens=max_tokens)
    rows = plan_rows(trajectories, max_tokens=max_tokens, ghosts=True)
    assert len(rows) == len(plain)
    for one, other in zip(rows, plain, strict=True):
        assert one.tokens == other.tokens
        assert one.pairs == other.pairs
        for name in ("input_ids", "position_ids"):
            assert sorted(getattr(one, name)) == sorted(getattr(other, name))
        for name in ("targets", "weights", "logprobs", "versions", "trajectory", "response_index"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_every_row_predicts_its_own_targets_again() -> None:
    trajectories = many(3, 6)
    rows = [
        row for rank in plan_ranks(trajectories, None, 120, ranks=2, ghosts=True) for row in rank
    ]
    assert sum(row.ghosts is not None for row in rows) > 2
    for row in rows:
        if row.ghosts is None:
            continue
        ghosts, at = row.ghosts.row, row.ghosts.targets
        assert len(np.unique(at)) == len(at)
        assert np.array_equal(ghosts.targets, row.targets[at])
        assert np.array_equal(ghosts.response_index, row.response_index[at])
        assert np.array_equal(ghosts.trajectory, row.trajectory[at])
        assert np.array_equal(ghosts.above, row.position_ids)
        assert ghosts.bounds[-1] == row.tokens + ghosts.tokens


def test_tokens_are_the_theory() -> None:
    """Each token after the first edit once more, and nothing else: all KV is shared."""
    rng = np.random.default_rng(1)
    world = World(passes=(4, 6), sampled=(3, 6), outside=0)
    edited = 0
    for one in [simulate(rng, policy, world=world) for policy in ("exact", "sticky") * 4]:
        after = sum(
            one.passes[k].stop - one.passes[k].start
            for _, group in edited_stretches(one)
            for k in group
        )
        (row,) = plan_rows([one], ghosts=True)
        assert (row.ghosts is None) == (after == 0)
        if row.ghosts is not None:
            assert row.ghosts.row.tokens == after == len(row.ghosts.targets)
            edited += 1
    assert edited > 3


def test_only_spans_have_ghosts() -> None:
    with pytest.raises(ValueError, match=r"'truncated' has no ghosts.*use packed"):
        plan_rows(many(0), strategy="truncated", ghosts=True)


def test_static_text_has_none() -> None:
    static = Trajectory(
        trajectory_id="s",
        pieces=(np.zeros(3, np.int32),),
        response=np.ones(4, np.int32),
        logprobs=np.zeros(4, np.float32),
        passes=(Pass(layout=(0, RESPONSE), states={}, start=0, stop=4, num_cached_tokens=0),),
    )
    (row,) = plan_rows([static], ghosts=True)
    assert row.ghosts is None
    assert plan_rows([], ghosts=True) == []
