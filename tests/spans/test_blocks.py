"""Block kinds: hand-made passes, one for each kind, and sums over random trajectories."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dynatok_online.spans.blocks import KINDS, blocks, recomputed_tokens
from dynatok_online.trajectory import OUTSIDE, RESPONSE, Pass, Reuse, Trajectory, VersionRun
from tests.simulate import simulate


def ids(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], np.int32)


PIECES = (ids("head...."), ids("AAAA"), ids("BBBB"), ids("tail"))
"""Blocks of four: two of the head, one of the slot, one of the text after it."""


def make(*passes: tuple[int, int, tuple[Reuse, ...]], version=(0, 0, 0), **more) -> Trajectory:
    """Passes as (piece in the slot, tokens sampled, reuse)."""
    at, out = 0, []
    for k, (slot, sampled, reuse) in enumerate(passes):
        out.append(
            Pass(
                layout=(0, slot, 3, RESPONSE),
                states={"s": "AB"[slot - 1]},
                start=at,
                stop=at + sampled,
                num_cached_tokens=sum(run.stop - run.start for run in reuse),
                reuse=reuse,
                weight_versions=(VersionRun(version[k], sampled),),
            )
        )
        at += sampled
    return Trajectory(
        trajectory_id="t",
        pieces=PIECES,
        response=ids("abcdefghijklmnopqrstuvwxyz"[:at]),
        logprobs=np.zeros(at, np.float32),
        passes=tuple(out),
        block_size=4,
        **more,
    )


def kinds(trajectory: Trajectory, k: int) -> list[str]:
    return [block.kind for block in blocks(trajectory, k)]


def test_the_first_pass_is_new_and_its_last_block_partly_filled():
    one = make((1, 7, ()))
    found = blocks(one, 0)
    assert [b.kind for b in found] == ["new"] * 6
    assert [(b.start, b.stop) for b in found][-2:] == [(16, 20), (20, 22)]
    assert recomputed_tokens(one, 0) == 0


def test_exact_reuses_the_beginning_and_computes_the_rest_again():
    one = make((1, 7, ()), (2, 6, (Reuse(0, 0, 8),)))
    assert kinds(one, 1) == ["reused", "reused", "new", "recomputed", "recomputed", "new", "new"]
    # "tail", and the six response tokens whose KV the first pass had; the seventh never had any.
    assert recomputed_tokens(one, 1) == 4 + 6


def test_sticky_keeps_what_was_computed_under_the_old_state():
    one = make((1, 8, ()), (2, 5, (Reuse(0, 0, 8), Reuse(0, 12, 20))))
    assert kinds(one, 1) == ["reused", "reused", "new", "kept", "kept", "recomputed", "new"]
    assert [b.origin for b in blocks(one, 1)] == [0, 0, 1, 0, 0, 1, 1]


def test_a_toggle_back_makes_kept_blocks_ordinary_again():
    back = (Reuse(0, 0, 20),)
    one = make((1, 8, ()), (2, 5, (Reuse(0, 0, 8), Reuse(0, 12, 20))), (1, 5, back))
    assert kinds(one, 2)[:5] == ["reused"] * 5


def test_blocks_that_others_computed_are_shared():
    one = make((1, 7, (Reuse(OUTSIDE, 0, 8),)))
    assert kinds(one, 0) == ["shared", "shared", "new", "new", "new", "new"]


def test_what_should_have_been_in_the_cache_was_evicted():
    one = make((1, 7, ()), (2, 6, (Reuse(0, 0, 4),)))
    assert kinds(one, 1)[:3] == ["reused", "evicted", "new"]


@pytest.mark.parametrize("changes", [{"version": (0, 1)}, {"info": {"reuse": "none"}}])
def test_new_weights_and_starting_over_evict_nothing(changes):
    one = make((1, 7, ()), (2, 6, ()), **changes)
    assert kinds(one, 1)[:3] == ["recomputed", "recomputed", "new"]


def test_the_last_fed_token_is_always_computed_and_never_called_evicted():
    # Twenty tokens were fed, five whole blocks: the fifth cannot be reused.
    one = make((1, 4, ()), (1, 3, (Reuse(0, 0, 16),)))
    assert kinds(one, 1) == ["reused"] * 4 + ["recomputed", "new"]


@pytest.mark.parametrize("policy", ["exact", "sticky"])
@pytest.mark.parametrize("late", [False, True])
def test_blocks_cover_every_pass_and_agree_with_its_record(policy, late):
    rng = np.random.default_rng(7)
    for _ in range(60):
        one = simulate(rng, policy, late=late, block_size=2)
        for k, recorded in enumerate(one.passes):
            found = blocks(one, k)
            assert [b.start for b in found] == list(range(0, one.kv_length(k), 2))
            assert not found or found[-1].stop == one.kv_length(k)
            cached = [b for b in found if b.kind in ("reused", "kept", "shared")]
            reused = sum(min(run.stop, one.kv_length(k)) - run.start for run in recorded.reuse)
            assert sum(b.stop - b.start for b in cached) == reused
            assert {b.kind for b in found} <= set(KINDS)
            if policy == "exact":
                assert "kept" not in {b.kind for b in found}


def test_exact_without_a_cache_never_reuses():
    rng = np.random.default_rng(1)
    one = simulate(rng, "exact", block_size=2)
    cold = msgspec.structs.replace(
        one,
        passes=tuple(msgspec.structs.replace(p, reuse=(), num_cached_tokens=0) for p in one.passes),
    )
    for k in range(len(cold.passes)):
        assert not {"reused", "kept", "shared"} & set(kinds(cold, k))
