"""Each verifier by hand-written positive, negative and partial cases, and the fair edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatok_online.requirements import REQUIREMENTS, Verdict, family, requirement
from dynatok_online.wordlists import NUMBER_WORDS, WORD_LISTS

CASES = [
    ("upper", "THE 3 OWLS CAN'T SLEEP.", 1.0),
    ("upper", "the owls", 0.0),
    ("upper", "THE owls", 0.5),
    ("upper", "The OWLS", 0.5),
    ("lower", "the 3 owls can't sleep.", 1.0),
    ("lower", "THE OWLS", 0.0),
    ("lower", "The owls", 0.5),
    ("title", "A Trail Has 3 Owls.", 1.0),
    ("title", "a trail", 0.0),
    ("title", "THE TRAIL", 0.0),
    ("title", "The trail", 0.5),
    ("sea", "we saw BOATS by the Pier", 1.0),
    ("sea", "we saw owls by the trail", 0.0),
    ("sea", "boats near the museum", 0.5),
    ("forest", "owls near the grove", 1.0),
    ("forest", "gulls", 0.0),
    ("forest", "gulls, owls", 0.5),
    ("city", "trams near the plaza", 1.0),
    ("city", "a gull's nest by the pier", 0.0),
    ("city", "crabs and trams and ferns and towers", 0.5),
    ("digits", "3 owls and 12 logs", 1.0),
    ("digits", "three owls", 0.0),
    ("digits", "3 owls and Twelve logs", 0.5),
    ("spelled", "THREE owls", 1.0),
    ("spelled", "3 owls", 0.0),
    ("spelled", "three owls, 4 logs", 0.5),
    ("no_e", "a cat sat", 1.0),
    ("no_e", "THE eel", 0.0),
    ("no_e", "a cat ate it", 0.75),
    ("brackets", "[we] [saw] [3]", 1.0),
    ("brackets", "we saw", 0.0),
    ("brackets", "[we] saw", 0.5),
    ("brackets", "[we saw]", 0.0),
]


@pytest.mark.parametrize(("name", "text", "score"), CASES)
def test_score(name: str, text: str, score: float) -> None:
    assert requirement(name).verify(text).score == score


def test_every_requirement_has_a_positive_a_negative_and_a_partial_case() -> None:
    for name in REQUIREMENTS:
        scores = [score for case, _, score in CASES if case == name]
        assert {0.0, 1.0} <= set(scores), name
        assert set(scores) - {0.0, 1.0}, name


@pytest.mark.parametrize(
    ("name", "text"), [("upper", "3, 4."), ("sea", "we saw"), ("digits", "owls"), ("no_e", "")]
)
def test_no_unit_is_no_evidence(name: str, text: str) -> None:
    verdict = requirement(name).verify(text)
    assert verdict == Verdict(())
    assert verdict.score is None


def test_units_say_where() -> None:
    text = "the OWLS slept"
    units = requirement("lower").verify(text).units
    assert [(text[u.start : u.stop], u.ok) for u in units] == [
        ("the", True),
        ("OWLS", False),
        ("slept", True),
    ]


def test_words_that_reach_into_the_neighbouring_text_do_not_count() -> None:
    upper = requirement("upper")
    assert upper.verify("ts SAW A gu", before="boa", after="lls").score == 1.0
    assert upper.verify("ts SAW A gu").score == 0.5
    assert upper.verify(" SAW A ", before="boats", after="gulls").score == 1.0
    assert upper.verify("oat", before="b", after="s").score is None
    # Without its neighbours "ten" would be a number, and "sea" words could appear by accident.
    assert requirement("digits").verify("ten", before="of").score is None
    assert requirement("brackets").verify("ts] [saw]", before="[boa").score == 1.0


@given(
    name=st.sampled_from(sorted(REQUIREMENTS)),
    words=st.lists(
        st.sampled_from(
            sorted({*NUMBER_WORDS, *WORD_LISTS["sea"], "we", "Saw", "THE", "7", "[a]"})
        ),
        max_size=12,
    ),
    cuts=st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_cutting_a_text_neither_invents_nor_changes_units(
    name: str, words: list[str], cuts: tuple[int, int]
) -> None:
    text = " ".join(words)
    a, b = sorted(min(cut, len(text)) for cut in cuts)
    whole = {(u.start, u.stop, u.ok) for u in requirement(name).verify(text).units}
    part = requirement(name).verify(text[a:b], before=text[:a], after=text[b:]).units
    assert {(u.start + a, u.stop + a, u.ok) for u in part} == {
        (start, stop, ok) for start, stop, ok in whole if a <= start and stop <= b
    }


def test_word_lists_share_no_word() -> None:
    lists = list(WORD_LISTS.values())
    assert len(frozenset[str]().union(*lists)) == sum(map(len, lists))
    assert all(word not in NUMBER_WORDS for words in lists for word in words)


def test_unknown_names_are_answered_with_the_nearest_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'upper'"):
        requirement("uper")
    with pytest.raises(ValueError, match="use one of: upper, lower"):
        requirement("xxxxxxxx")
    with pytest.raises(ValueError, match="did you mean 'case'"):
        family("cases")


def test_families() -> None:
    assert [item.name for item in family("case")] == ["upper", "lower", "title"]
    assert {item.family for item in REQUIREMENTS.values()} >= {"case", "words", "numbers"}
    assert all(name == item.name for name, item in REQUIREMENTS.items())
