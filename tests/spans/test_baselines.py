"""Baselines list the same targets as more text."""

from __future__ import annotations

import numpy as np

from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.baselines import snapshot_spans, static_spans, truncated_spans
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory


def edited(states: int, static: int, slot: int, segment: int) -> Trajectory:
    total = states * segment
    return Trajectory(
        trajectory_id="t",
        pieces=tuple(np.full(n, i, np.int32) for i, n in enumerate([static, *[slot] * states])),
        response=np.arange(100, 100 + total, dtype=np.int32),
        logprobs=np.zeros(total, np.float32),
        passes=tuple(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={},
                start=k * segment,
                stop=(k + 1) * segment,
                num_cached_tokens=0,
            )
            for k in range(states)
        ),
    )


def test_tokens_are_what_the_design_says() -> None:
    """Less the last token of each text, which nothing is predicted from."""
    states, static, slot, segment = 4, 10, 3, 5
    one = [edited(states, static, slot, segment)]
    ends = [segment * (k + 1) for k in range(states)]
    total = states * segment

    def tokens(strategy: str) -> int:
        return sum(row.tokens for row in plan_rows(one, strategy=strategy))

    assert tokens("snapshot") == states * (static + slot + total - 1)
    assert tokens("truncated") == sum(static + slot + e - 1 for e in ends)
    assert tokens("packed") == static + sum(slot + e - 1 for e in ends)
    assert tokens("static") == static + slot + total - 1


def test_a_toggle_is_one_snapshot() -> None:
    one = edited(3, 4, 2, 5)
    passes = list(one.passes)
    passes[2] = Pass(layout=(0, 1, RESPONSE), states={}, start=10, stop=15, num_cached_tokens=0)
    toggled = Trajectory(
        trajectory_id="t",
        pieces=one.pieces,
        response=one.response,
        logprobs=one.logprobs,
        passes=tuple(passes),
    )
    spans = snapshot_spans([toggled])
    assert len(spans.bounds) - 1 == 2
    assert len(truncated_spans([toggled]).bounds) - 1 == 2
    assert sorted(spans.response_index.tolist()) == list(range(15))
    before = spans.input_ids[spans.loss_positions]
    after = one.response[spans.response_index]
    inner = spans.response_index > 0
    assert (before[inner] == after[inner] - 1).all()


def test_late_slot_splits_texts_at_every_edit() -> None:
    one = edited(2, 4, 2, 3)
    passes = tuple(
        Pass(layout=(0, RESPONSE, 1), states={}, start=p.start, stop=p.stop, num_cached_tokens=0)
        for p in one.passes
    )
    late = Trajectory(
        trajectory_id="t",
        pieces=one.pieces,
        response=one.response,
        logprobs=one.logprobs,
        passes=passes,
    )
    assert np.diff(snapshot_spans([late]).bounds).tolist() == [4 + 2 + 5] * 2
    assert np.diff(truncated_spans([late]).bounds).tolist() == [4 + 2 + 2, 4 + 2 + 5]
    assert np.diff(static_spans([late]).bounds).tolist() == [4 + 2 + 5]
