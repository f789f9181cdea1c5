"""Every text of the grammar satisfies what it was written under; a gold change takes effect."""

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from dynatok_online.requirements import family, requirement
from dynatok_online.tiny import grammar
from dynatok_online.tiny.world import SLOTS

COMBINATIONS = [
    dict(zip(SLOTS, names, strict=True))
    for names in product(*([item.name for item in family(slot)] for slot in SLOTS))
]
ANY = st.sampled_from(COMBINATIONS)


def test_there_are_at_least_six_requirements_in_the_world() -> None:
    assert len(COMBINATIONS) == 18
    assert sum(len(family(slot)) for slot in SLOTS) == 8


@given(states=ANY, seed=st.integers(0, 10**6), length=st.integers(60, 300))
def test_static_text_obeys_all_its_requirements(
    states: dict[str, str], seed: int, length: int
) -> None:
    text = grammar.write(random.Random(seed), states, length + 20)
    for name in states.values():
        verdict = requirement(name).verify(text[:length], after=text[length:])
        assert all(unit.ok for unit in verdict.units)
        assert verdict.units
    assert len(grammar.write(random.Random(seed), states, length)) == length


@given(old=ANY, new=ANY, seed=st.integers(0, 10**6), index=st.integers(1, 150))
def test_gold_obeys_each_state_from_the_first_whole_word(
    old: dict[str, str], new: dict[str, str], seed: int, index: int
) -> None:
    text = grammar.gold(random.Random(seed), lambda i: old if i < index else new, 260)
    parts = [
        (old, text[:index], "", text[index:]),
        (new, text[index:240], text[:index], text[240:]),
    ]
    for states, part, before, after in parts:
        for name in states.values():
            verdict = requirement(name).verify(part, before=before, after=after)
            assert all(unit.ok for unit in verdict.units)


def test_one_content_in_every_style() -> None:
    atoms = grammar.sentence(random.Random(3))
    plain = {"case": "lower", "words": "sea", "numbers": "digits"}
    loud = plain | {"case": "upper"}
    assert [a.write(loud) for a in atoms] == [a.write(plain).upper() for a in atoms]
    assert atoms[-1].write(plain).endswith(".")
