"""Tiles cover the definition of the mask, each pair once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dynatok_online.attention.layout import Layout
from dynatok_online.attention.tiles import cut_tiles
from dynatok_online.rows.parts import Part, cut_row
from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory
from tests.simulate import World, simulate


def covered(layout: Layout, window: int | None) -> np.ndarray:
    above = layout.above
    count = np.zeros((layout.tokens, above + layout.tokens), int)
    for tile in cut_tiles(layout, window):
        block = np.ones((tile.q1 - tile.q0, tile.k1 - tile.k0), int)
        if tile.causal:
            block = np.tril(block)
        if tile.window is not None:
            ahead = (
                layout.positions[tile.q0 : tile.q1, None]
                - layout.positions[None, tile.k0 : tile.k1]
            )
            block *= ahead < tile.window
            assert block.any(1).all(), "a query without keys has no softmax"
        count[tile.q0 - above : tile.q1 - above, tile.k0 : tile.k1] += block
    return count


@pytest.mark.parametrize("window", [None, 1, 2, 5, 30, 100])
@pytest.mark.parametrize("policy", ["exact", "sticky"])
def test_every_pair_once(policy: str, window: int | None) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        world = World(text=(1, 80), sampled=(0, 60)) if seed % 2 else World()
        many = [simulate(rng, policy, world=world, late=policy == "exact") for _ in range(2)]
        for row in plan_rows(many):
            for layout in (Layout(row), *map(Layout, rows_of(cut_row(row)))):
                assert (covered(layout, window) == layout.mask(window)).all()


def rows_of(parts: Sequence[Part]) -> list[Row]:
    return [row for part in parts for row in (part.row, *rows_of(part.below))]


def test_few_pieces_for_an_edited_response() -> None:
    """K states: exact has one rectangle, however many branches; sticky one more per state."""
    states, slot, segment = 6, 4, 10

    def edited(policy: str) -> Layout:
        passes = []
        for k in range(states):
            reuse = [Reuse(0, 0, 8)] if k else []
            if policy == "sticky" and k:
                reuse += [Reuse(0, 8 + slot, 8 + slot + segment - 1)]
                reuse += [
                    Reuse(i, 8 + slot + i * segment - 1, 8 + slot + (i + 1) * segment - 1)
                    for i in range(1, k)
                ]
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
        pieces = (np.arange(8), *(np.full(slot, 50 + k) for k in range(states)))
        (row,) = plan_rows(
            [
                Trajectory(
                    trajectory_id=policy,
                    pieces=tuple(piece.astype(np.int32) for piece in pieces),
                    response=np.arange(100, 100 + states * segment, dtype=np.int32),
                    logprobs=np.zeros(states * segment, np.float32),
                    passes=tuple(passes),
                    policy=policy,
                )
            ]
        )
        return Layout(row)

    exact = cut_tiles(edited("exact"), None)
    assert sum(not tile.causal for tile in exact) == 1
    sticky = cut_tiles(edited("sticky"), None)
    assert sum(not tile.causal for tile in sticky) <= states + 2
