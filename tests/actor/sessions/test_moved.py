"""What blocks are made of whose text has moved, against a cache of single positions."""

from __future__ import annotations

import random

import numpy as np
import pytest

from actor.sessions.moved import Part, Source, is_whole, parts_of, places_of, runs_of, sources_of


def test_runs_and_places_are_each_others_inverse() -> None:
    places = np.array([0, 1, -1, 4, 5, 6, -1, -1, 2, 3])
    runs = runs_of(places)
    assert runs == ((0, 2, 0), (3, 6, -1), (8, 10, 6))
    assert places_of(runs, 10, 99).tolist() == places.tolist()
    assert places_of(runs, 9, 6).tolist() == [0, 1, -1, 4, 5, -1, -1, -1, 2]
    assert runs_of(np.array([], int)) == ()


def test_a_block_comes_from_two_where_text_moved_by_no_whole_block() -> None:
    places = np.array([0, 1, 2, 3, -1, -1, 4, 5, 6, 7, 8, 9, 10])
    assert sources_of(places, 4) == [
        (Source(0, 0, 4, 0),),
        (),
        (Source(1, 2, 4, 2), Source(2, 0, 2, 2)),
    ]


def test_text_that_moves_back_is_the_block_that_it_was() -> None:
    def first(block: int) -> tuple[Part, ...]:
        return (Part(b"%d" % block, 0, 4, 0),)

    away = {j: parts_of([Source(j - 1, 1, 4, 3), Source(j, 0, 1, 3)], first) for j in range(1, 4)}
    assert away[2] == (Part(b"1", 1, 4, 3), Part(b"2", 0, 1, 3))
    assert not is_whole(away[2], 4)
    back = parts_of([Source(2, 3, 4, -3), Source(3, 0, 3, -3)], away.__getitem__)
    assert back == first(2)
    assert is_whole(back, 4)


@pytest.mark.parametrize("seed", range(20))
def test_parts_name_the_position_that_computed_each_key(seed: int) -> None:
    rng, size, blocks = random.Random(seed), 4, 12
    made: dict[int, tuple[Part, ...]] = {j: (Part(b"%d" % j, 0, size, 0),) for j in range(blocks)}
    origin = np.arange(blocks * size)
    for _ in range(4):
        places = np.full(blocks * size, -1)
        at = old = 0
        while at < len(places):  # pieces that stay, grow out of nothing, or are left out
            length = rng.randint(1, 9)
            if rng.random() < 0.75:
                places[at : at + length] = old + np.arange(len(places[at : at + length]))
            at, old = at + length, old + max(0, length + rng.randint(-3, 3))
        places[places >= len(origin)] = -1
        sources = sources_of(places, size)
        usable = {
            j: one for j, one in enumerate(sources) if one and all(s.block in made for s in one)
        }
        made = {j: parts_of(one, made.__getitem__) for j, one in usable.items()}
        new = np.full(blocks * size, -1)
        for j in made:
            mine = slice(j * size, (j + 1) * size)
            new[mine] = origin[places[mine]]
            listed = [int(p.name) * size + at for p in made[j] for at in range(p.start, p.stop)]
            moved = [p.shift for p in made[j] for _ in range(p.start, p.stop)]
            assert listed == new[mine].tolist()
            assert moved == [at - where for at, where in enumerate(listed, j * size)]
        origin = new
