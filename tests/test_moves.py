"""Where the text of a pass stood in the one before it."""

from __future__ import annotations

import numpy as np

from dynatok_online.moves import former_places
from dynatok_online.trajectory import RESPONSE, TokenIds


def pieces(*texts: str) -> list[TokenIds]:
    return [np.array([ord(c) for c in text], np.int32) for text in texts]


def test_what_stands_behind_a_slot_moves_with_it() -> None:
    table = pieces("ab", "c", "de", "fgh")
    places = former_places((0, 1, 2, RESPONSE), 0, 7, (0, 3, 2, RESPONSE), 3, table)
    assert places.tolist() == [0, 1, -1, -1, -1, 3, 4, 5, 6, -1]
    back = former_places((0, 3, 2, RESPONSE), 3, 12, (0, 1, 2, RESPONSE), 6, table)
    assert back.tolist() == [0, 1, -1, 5, 6, 7, 8, 9, 10, 11, -1]


def test_two_slots_add_up_and_one_may_be_empty() -> None:
    table = pieces("a", "bb", "c", "dd", "", "ddd")
    places = former_places((0, 1, 2, 3, RESPONSE), 0, 6, (0, 4, 2, 5, RESPONSE), 1, table)
    assert places.tolist() == [0, 3, -1, -1, -1, -1]
    longer = former_places((0, 1, 2, 3, RESPONSE), 0, 8, (0, 4, 2, 5, RESPONSE), 2, table)
    assert longer.tolist() == [0, 3, -1, -1, -1, 6, 7]


def test_behind_the_response_nothing_stands_where_it_stood() -> None:
    """The response so far was fed up to 2; what was sampled then stood behind the slot."""
    table = pieces("ab", "cc", "d")
    places = former_places((0, RESPONSE, 1), 2, 9, (0, RESPONSE, 2), 5, table)
    assert places.tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    same = former_places((0, RESPONSE, 1), 2, 9, (0, RESPONSE, 1), 5, table)
    assert same.tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]


def test_what_was_not_computed_stood_nowhere() -> None:
    table = pieces("abcd")
    assert former_places((0, RESPONSE), 0, 3, (0, RESPONSE), 1, table).tolist() == [0, 1, 2, -1, -1]
