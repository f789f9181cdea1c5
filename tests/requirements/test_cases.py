"""Each verifier by hand-written positive, negative and partial cases, and the fair edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatok_online.requirements import Verdict, requirement
from dynatok_online.requirements.kinds import GENERAL

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
    ("min_capital_words:2", "we saw BIG WELL-KNOWN owls", 1.0),
    ("min_capital_words:2", "we saw owls", 0.0),
    ("min_capital_words:2", "we saw BIG owls", 0.5),
    ("max_capital_words:1", "we saw BIG owls", 1.0),
    ("max_capital_words:0", "BIG OWLS", 0.0),
    ("max_capital_words:1", "BIG OWLS", 0.5),
    ("include:owl,reef", "OWLS at the reef", 1.0),
    ("include:owl,reef", "gulls", 0.0),
    ("include:owl,reef", "we saw owls", 0.5),
    ("forbid:owl,reef", "owls fly", 1.0),
    ("forbid:owl,reef", "Owl reef", 0.0),
    ("forbid:owl,reef", "an owl flew by", 0.75),
    ("min_keyword:owl=2", "owls met an owl", 1.0),
    ("min_keyword:owl=2", "gulls", 0.0),
    ("min_keyword:owl=2", "owls", 0.5),
    ("max_keyword:owl=1", "one owl", 1.0),
    ("max_keyword:owl=0", "owl owls", 0.0),
    ("max_keyword:owl=1", "owl owls", 0.5),
    ("max_repeats:1", "one owl saw us", 1.0),
    ("max_repeats:0", "owl", 0.0),
    ("max_repeats:1", "owl Owl", 0.5),
    ("no_repeated_runs:2", "we saw owls and trees", 1.0),
    ("no_repeated_runs:2", "owl owl owl owl owl owl owl owl owl owl owl", 0.1),
    ("no_repeated_runs:1", "owl owl", 0.5),
    ("digits", "3 owls and 12 logs", 1.0),
    ("digits", "three owls", 0.0),
    ("digits", "3 owls and Twelve logs", 0.5),
    ("spelled", "THREE owls", 1.0),
    ("spelled", "3 owls", 0.0),
    ("spelled", "three owls, 4 logs", 0.5),
    ("no_digits", "three owls", 1.0),
    ("no_digits", "3 4x", 0.0),
    ("no_digits", "3 owls", 0.5),
    ("no_e", "a cat sat", 1.0),
    ("no_e", "THE eel", 0.0),
    ("no_e", "a cat ate it", 0.75),
    ("no_letter:a", "the owls", 1.0),
    ("no_letter:a", "A cat sat", 0.0),
    ("no_letter:a", "a log", 0.5),
    ("min_letter:o=2", "Owls go", 1.0),
    ("min_letter:o=2", "bees", 0.0),
    ("min_letter:o=2", "owls", 0.5),
    ("max_letter:o=1", "owls flew", 1.0),
    ("max_letter:o=0", "owls go", 0.0),
    ("max_letter:o=1", "owls go", 0.5),
    ("no_comma", "owls and trees", 1.0),
    ("no_comma", "owls,", 0.0),
    ("no_comma", "owls, trees", 0.5),
    ("brackets", "[we] [saw] [3]", 1.0),
    ("brackets", "we saw", 0.0),
    ("brackets", "[we] saw", 0.5),
    ("brackets", "[we saw]", 0.0),
    ("min_placeholders:2", "to [name] at [street 3]", 1.0),
    ("min_placeholders:2", "to you", 0.0),
    ("min_placeholders:2", "to [name]", 0.5),
    ("exclaim", "Owls! We saw owls!", 1.0),
    ("exclaim", "Owls.", 0.0),
    ("exclaim", "Owls! We saw owls.", 0.5),
    ("ask", 'Owls? "We saw owls?"', 1.0),
    ("ask", "Owls!", 0.0),
    ("ask", "Owls? Dr. Wu saw owls.", 0.5),
    ("min_words:3", "we saw owls", 1.0),
    ("min_words:3", "", 0.0),
    ("min_words:4", "we saw", 0.5),
    ("max_words:3", "we saw owls", 1.0),
    ("max_words:0", "we saw", 0.0),
    ("max_words:3", "we saw owls and trees again", 0.5),
    ("min_sentences:2", "We saw owls. Mr. Wu did not.", 1.0),
    ("min_sentences:2", "", 0.0),
    ("min_sentences:2", "We saw owls.", 0.5),
    ("max_sentences:2", "We saw owls. It was late!", 1.0),
    ("max_sentences:0", "We saw owls.", 0.0),
    ("max_sentences:1", "We saw owls. It was late", 0.5),
    ("short_sentences:3", "We saw owls. It was late.", 1.0),
    ("short_sentences:2", "We saw owls. It was late.", 0.0),
    ("short_sentences:3", "We saw owls. It was very late.", 0.5),
    ("paragraphs:2", "owls\n***\ntrees", 1.0),
    ("paragraphs:2", "", 0.0),
    ("paragraphs:2", "owls", 0.5),
    ("paragraphs:2", "owls *** *** trees", 2 / 3),
    ("bullets:2", "* owls\n- trees", 1.0),
    ("bullets:2", "owls and **trees**", 0.0),
    ("bullets:2", "owls:\n* trees", 0.5),
    ("json", '```json\n{"owls": [3]}\n```', 1.0),
    ("json", '{"owls": 3', 0.0),
    ("quoted", ' "we saw owls" ', 1.0),
    ("quoted", "we saw owls", 0.0),
    ("quoted", '"we saw owls', 0.5),
    ("headed", "<<owls>> we saw", 1.0),
    ("headed", "<< >> owls", 0.0),
    ("min_highlights:2", "*owls* and **trees**", 1.0),
    ("min_highlights:2", "owls * trees", 0.0),
    ("min_highlights:2", "*owls* and trees", 0.5),
    ("min_sections:2", "Section 1\nowls\nSection 2\ntrees", 1.0),
    ("min_sections:2", "owls", 0.0),
    ("min_sections:2", "Section 1\nowls", 0.5),
    ("postscript:P.S.", "owls. P. S. trees", 1.0),
    ("postscript:P.P.S", "owls. p.p. s trees", 1.0),
    ("postscript:P.S.", "owls PS", 0.0),
    ("starts_with:We saw", "  we saw owls", 1.0),
    ("starts_with:We saw", "owls we saw", 0.0),
    ("ends_with:The end.", 'owls. "THE END."', 1.0),
    ("ends_with:The end.", "the end", 0.0),
    ("language:en", "The owls are in the trees. We saw them.", 1.0),
    ("language:en", "Die Eulen sind in den Bäumen.", 0.0),
    ("language:en", "The owls are in the trees. Die Eulen sind nicht da.", 0.5),
    ("language:de", "Die Eulen sind in den Bäumen.", 1.0),
    ("alliteration", "Seven silly seals sang.", 1.0),
    ("alliteration", "Seven owls flew.", 0.0),
    ("alliteration", "Seven owls saw some.", 0.5),
    ("rhyme", "the owl in the night\nhad a terrible fright", 1.0),
    ("rhyme", "the owl in the night\nhad a terrible day", 0.0),
    ("rhyme", "one night\none fright\n\none day\none log", 0.5),
]
WHOLE = {"json", "headed", "postscript", "starts_with", "ends_with"}
"""One unit only: there is no partial case."""


@pytest.mark.parametrize(("name", "text", "score"), CASES)
def test_score(name: str, text: str, score: float) -> None:
    assert requirement(name).verify(text).score == pytest.approx(score)


def test_every_kind_has_a_positive_a_negative_and_a_partial_case() -> None:
    for name in (kind.name for kind in GENERAL):
        scores = [score for case, _, score in CASES if case.partition(":")[0] == name]
        assert 1.0 in scores, name
        assert min(scores) <= 0.1, name
        assert name in WHOLE or set(scores) - {0.0, 1.0}, name


@pytest.mark.parametrize(("name", "text"), [("upper", "3, 4."), ("digits", "owls"), ("no_e", "")])
def test_no_unit_is_no_evidence(name: str, text: str) -> None:
    verdict = requirement(name).verify(text)
    assert verdict == Verdict(())
    assert verdict.score is None
    assert verdict.holds is None


def test_units_say_where() -> None:
    text = "the OWLS slept"
    units = requirement("lower").verify(text).units
    assert [(text[u.start : u.stop], u.ok) for u in units] == [
        ("the", True),
        ("OWLS", False),
        ("slept", True),
    ]


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("max_words:2", "we saw owls there", ["owls", "there"]),
        ("max_keyword:owl=1", "owls met an owl", ["owl"]),
        ("forbid:owl", "an owl flew", ["owl"]),
        ("no_repeated_runs:2", "we saw us and we saw owls", ["we saw"]),
        ("json", '{"a": 1, b}', ["b}"]),
        ("quoted", 'owls"', ["o"]),
        ("ends_with:end", "the day", ["day"]),
        ("starts_with:End", " the end", ["the"]),
        ("short_sentences:2", "Owls slept. We saw them.", ["We saw them."]),
        ("rhyme", "a night\na log", ["log"]),
        ("alliteration", "Seven owls slept.", ["owls"]),
        ("min_words:3", "owls", ["", ""]),
        ("upper+no_comma", "OWLS, trees", ["OWLS,", "trees"]),
    ],
)
def test_what_is_wrong_is_located(name: str, text: str, wrong: list[str]) -> None:
    units = requirement(name).verify(text).units
    assert [text[u.start : u.stop] for u in units if not u.ok] == wrong


def test_words_that_reach_into_the_neighbouring_text_do_not_count() -> None:
    upper = requirement("upper")
    assert upper.verify("ts SAW A gu", before="boa", after="lls").score == 1.0
    assert upper.verify("ts SAW A gu").score == 0.5
    assert upper.verify(" SAW A ", before="boats", after="gulls").score == 1.0
    assert upper.verify("oat", before="b", after="s").score is None
    # Without its neighbours "ten" would be a number, and other words could appear by accident.
    assert requirement("digits").verify("ten", before="of").score is None
    assert requirement("brackets").verify("ts] [saw]", before="[boa").score == 1.0


JUDGED_ALONE = sorted(
    {kind.example for kind in GENERAL if ":" not in kind.example}
    - {"json", "quoted", "headed", "rhyme", "alliteration", "exclaim", "ask"}
)


@given(
    name=st.sampled_from(JUDGED_ALONE),
    words=st.lists(
        st.sampled_from(
            ["two", "Twelve", "boats", "gulls,", "piers.", "we", "Saw", "THE", "7", "[a]"]
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


@given(
    st.sampled_from([kind.example for kind in GENERAL]),
    st.text(max_size=60),
    st.text(max_size=9),
    st.text(max_size=9),
)
def test_units_lie_in_the_text_whatever_it_is(
    name: str, text: str, before: str, after: str
) -> None:
    verdict = requirement(name).verify(text, before=before, after=after)
    assert all(0 <= unit.start <= unit.stop <= len(text) for unit in verdict.units)
