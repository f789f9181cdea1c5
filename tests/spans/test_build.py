"""Spans of hand-made passes, and their merging."""

from __future__ import annotations

import numpy as np
import pytest

from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.spans.build import build_spans
from dynatok_online.trajectory import OUTSIDE, RESPONSE, Reuse, Trajectory
from tests.simulate import simulate
from tests.written import make, text


def spans_of(row: Row) -> list[tuple[str, int, str]]:
    """Per span: its text, first position, and the texts of what it sees, joined."""
    parts = [text(row.input_ids[a:b]) for a, b in zip(row.bounds[:-1], row.bounds[1:], strict=True)]
    return [
        (
            part,
            int(row.position_ids[row.bounds[s]]),
            "".join(parts[j] for j in np.flatnonzero(row.visible[s]) if j != s),
        )
        for s, part in enumerate(parts)
    ]


def only(trajectories: list[Trajectory], **options: object) -> Row:
    (row,) = plan_rows(trajectories, max_tokens=10_000, **options)  # type: ignore[arg-type]
    return row


def test_static_trajectory_is_one_span() -> None:
    row = only([make(["ab"], [((0, RESPONSE), "xyz", ())])])
    assert spans_of(row) == [("abxy", 0, "")]
    assert row.loss_positions.tolist() == [1, 2, 3]
    assert text(row.targets) == "xyz"


def test_exact_edit_forks_at_the_slot() -> None:
    one = make(
        ["S", "A", "B", ":"],
        [((0, 1, 3, RESPONSE), "xy", ()), ((0, 2, 3, RESPONSE), "z", (Reuse(0, 0, 1),))],
    )
    row = only([one])
    assert sorted(spans_of(row)) == [("A:x", 1, "S"), ("B:xy", 1, "S"), ("S", 0, "")]
    # Every target is predicted by the last token of the text that it was sampled from.
    assert [text(row.input_ids[[p]]) for p in row.loss_positions] == [":", "x", "y"]


def test_sticky_edit_replaces_the_slot_only() -> None:
    one = make(
        ["S", "A", "B", ":"],
        [
            ((0, 1, 3, RESPONSE), "xy", ()),
            ((0, 2, 3, RESPONSE), "zw", (Reuse(0, 0, 1), Reuse(0, 2, 4))),
        ],
        policy="sticky",
    )
    row = only([one])
    # ":x" was computed under A and stays; y and z are computed under B, over the old ":x".
    assert sorted(spans_of(row)) == sorted(
        [("S", 0, ""), ("A", 1, "S"), ("B", 1, "S"), (":x", 2, "SA"), ("yz", 4, "SB:x")]
    )
    assert row.tokens == 7
    assert [text(row.input_ids[[p]]) for p in row.loss_positions] == [":", "x", "y", "z"]


def test_toggle_pays_once() -> None:
    """A, B, A: the third pass recomputes what the first computed (evicted), at no cost."""
    one = make(
        ["S", "A", "B"],
        [
            ((0, 1, RESPONSE), "xy", ()),
            ((0, 2, RESPONSE), "z", (Reuse(0, 0, 1),)),
            ((0, 1, RESPONSE), "w", ()),
        ],
    )
    row = only([one])
    assert sorted(spans_of(row)) == [("Axyz", 1, "S"), ("Bxy", 1, "S"), ("S", 0, "")]


def test_block_rounding_does_not_matter() -> None:
    def edited(reused: int, origin: int) -> Trajectory:
        reuse = (Reuse(origin, 0, reused),) if reused else ()
        return make(
            ["prefix ", "A", "B"],
            [((0, 1, RESPONSE), "xyz", ()), ((0, 2, RESPONSE), "uv", reuse)],
        )

    rows = [only([edited(n, o)]) for n, o in ((0, 0), (3, 0), (4, 0), (7, 0), (4, OUTSIDE))]
    assert all(spans_of(row) == spans_of(rows[0]) for row in rows)
    assert rows[0].tokens == 7 + 3 + 5


def test_sticky_kv_is_not_merged_with_what_looks_alike() -> None:
    """Same tokens and positions, but computed over another past: not the same KV."""
    passes = [((0, 1, 2, RESPONSE), "xy", ()), ((0, 3, 2, RESPONSE), "z", (Reuse(0, 0, 1),))]
    fresh = make(["S", "A", ":", "B"], passes, name="fresh")  # type: ignore[arg-type]
    stuck = make(
        ["S", "A", ":", "B"],
        [
            ((0, 1, 2, RESPONSE), "xy", ()),
            ((0, 3, 2, RESPONSE), "z", (Reuse(0, 0, 1), Reuse(0, 2, 4))),
        ],
        policy="sticky",
        name="stuck",
    )
    row = only([fresh, stuck])
    # "y" over the stale ":x" stands beside "y" over the ":x" that was computed under B.
    assert sorted("".join(sorted(seen)) for part, _, seen in spans_of(row) if part == "y") == [
        ":BSx"
    ]
    assert ("B:xy", 1, "S") not in spans_of(row)
    assert sum(part.endswith("y") for part, _, _ in spans_of(row)) == 2
    # S, A:x, B are shared; ":xy" after B (exact) and "y" after stale ":x" (sticky) are not.
    assert row.tokens == only([fresh]).tokens + 1


def test_shared_system_prompt_across_trajectories() -> None:
    many = [
        make(["system ", name], [((0, 1, RESPONSE), "answer", ())], name=name) for name in "abc"
    ]
    row = only(many)
    assert row.tokens == 7 + 3 * 6
    assert (row.bounds[1:] - row.bounds[:-1]).tolist() == [7, 6, 6, 6]


def test_equal_trajectories_share_hidden_states_but_not_targets() -> None:
    one = make(["p"], [((0, RESPONSE), "xy", ())], name="a")
    other = make(["p"], [((0, RESPONSE), "xz", ())], name="b")
    row = only([one, other])
    assert row.tokens == 2
    assert row.loss_positions.tolist() == [0, 1, 0, 1]
    assert text(row.targets) == "xyxz"
    assert row.trajectory.tolist() == [0, 0, 1, 1]


def test_empty_pass_costs_nothing() -> None:
    """An edit right after an edit: the state in between sampled nothing."""
    one = make(
        ["S", "A", "B"],
        [((0, 1, RESPONSE), "", ()), ((0, 2, RESPONSE), "xy", (Reuse(0, 0, 1),))],
    )
    assert spans_of(only([one])) == [("SBx", 0, "")]


def test_late_slot_recomputes_its_segment_only() -> None:
    one = make(
        ["S", "A", "B"],
        [((0, RESPONSE, 1), "xyz", ()), ((0, RESPONSE, 2), "w", (Reuse(0, 0, 1),))],
    )
    assert sorted(spans_of(only([one]))) == [("Axy", 1, "S"), ("S", 0, ""), ("xyzB", 1, "S")]


@pytest.mark.parametrize("late", [False, True])
def test_exact_rows_are_the_prefix_tree_of_the_texts(late: bool) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        prefix = rng.integers(0, 5, 4).astype(np.int32)
        many = [
            simulate(rng, late=late, block_size=int(rng.integers(1, 4)), prefix=prefix)
            for _ in range(int(rng.integers(1, 4)))
        ]
        nodes = {
            tuple(one.tokens(k)[: p + 1])
            for one in many
            for k in range(len(one.passes))
            if one.passes[k].stop > one.passes[k].start
            for p in range(one.kv_length(k))
        }
        assert sum(row.tokens for row in plan_rows(many)) == len(nodes)


@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_spans_never_hold_the_same_twice(policy: str) -> None:
    """Same tokens, positions and visible spans: one span."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        spans = build_spans([simulate(rng, policy, name=str(i)) for i in range(3)])
        keys = set()
        for s in range(len(spans.bounds) - 1):
            a, b = spans.bounds[s], spans.bounds[s + 1]
            seen = spans.seen[spans.seen_bounds[s] : spans.seen_bounds[s + 1]]
            assert (seen < s).all()
            keys.add((*spans.input_ids[a:b], -1, *spans.position_ids[a:b], -1, *sorted(seen)))
        assert len(keys) == len(spans.bounds) - 1


def test_records_that_cannot_be_followed_are_errors() -> None:
    late = make(["ab", "A"], [((0, RESPONSE), "x", ()), ((0, RESPONSE), "y", (Reuse(0, 0, 3),))])
    with pytest.raises(ValueError, match="exceeds the 2 positions of pass 0"):
        build_spans([late])
    with pytest.raises(ValueError, match="empty prompt"):
        build_spans([make([""], [((0, RESPONSE), "x", ())])])
