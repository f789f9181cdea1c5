"""What holds of every verifier in every language."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynatok_online.requirements import requirement
from dynatok_online.requirements.folding import folded
from dynatok_online.requirements.kinds import GENERAL
from dynatok_online.requirements.pieces import COUNTED, TOKEN
from dynatok_online.requirements.verdict import SENTENCE, WORD
from tests.requirements.test_languages import CASES, SENTENCES
from tests.requirements.texts import SENTENCES as PROSE

SAMPLES = sorted(
    {
        *(" ".join(sentences) for _, sentences in SENTENCES),
        *(sentence for many in PROSE.values() for sentence in many),
        *(text for _, text, _ in CASES if len(text) < 200),
    }
)
NAMES = sorted({*(kind.example for kind in GENERAL), *(name for name, _, _ in CASES)})
WHOLE = ("json", "quoted", "starts_with", "ends_with", "paragraphs", "rhyme", "language")
"""Kinds that judge the text as a whole, or one place of it by what stands elsewhere in it."""
COUNTING = ("min_", "max_", "no_repeated", "include", "bullets", "headed", "postscript")


@pytest.mark.parametrize("text", SAMPLES)
def test_what_python_puts_in_a_case_is_in_it(text: str) -> None:
    title = WORD.sub(lambda match: match[0][:1].title() + match[0][1:].lower(), text)
    for name, written in (("upper", text.upper()), ("lower", text.lower()), ("title", title)):
        for form in ("NFC", "NFD"):
            assert requirement(name).verify(normalize(form, written)).holds is not False


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=3))
@settings(max_examples=300)
def test_canonically_equal_texts_get_the_same_verdict(name: str, texts: list[str]) -> None:
    text = " ".join(texts)
    composed, decomposed = (
        [unit.ok for unit in requirement(name).verify(normalize(form, text)).units]
        for form in ("NFC", "NFD")
    )
    assert composed == decomposed


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=3))
@settings(max_examples=200)
def test_a_curly_apostrophe_is_an_apostrophe(name: str, texts: list[str]) -> None:
    if name.startswith(("quoted", "json")):
        return
    text = " ".join(texts).replace("’", "'")
    straight, curly = (
        [unit.ok for unit in requirement(name).verify(one).units]
        for one in (text, text.replace("'", "’"))
    )
    assert straight == curly


@given(st.sampled_from(NAMES), st.sampled_from(SAMPLES), st.data())
@settings(max_examples=400)
def test_a_cut_changes_no_unit_away_from_it(name: str, text: str, data: st.DataObject) -> None:
    """Units of a part are the whole text's, as far as they lie in it."""
    if name.startswith((*WHOLE, *COUNTING)):
        return
    cut = data.draw(st.integers(0, len(text)))
    one = requirement(name)
    whole = {(unit.start, unit.stop, unit.ok) for unit in one.verify(text).units}
    left = {(u.start, u.stop, u.ok) for u in one.verify(text[:cut], after=text[cut:]).units}
    right = {
        (u.start + cut, u.stop + cut, u.ok) for u in one.verify(text[cut:], before=text[:cut]).units
    }
    assert left | right <= whole or name == "alliteration"
    assert all(start < cut < stop for start, stop, _ in whole - left - right) or name in (
        "alliteration",
    )


@given(st.sampled_from(NAMES), st.sampled_from(SAMPLES), st.sampled_from(SAMPLES))
@settings(max_examples=200)
def test_units_lie_in_the_text(name: str, text: str, other: str) -> None:
    for before, after in (("", ""), (other, ""), (other, other)):
        for unit in requirement(name).verify(text, before=before, after=after).units:
            assert 0 <= unit.start <= unit.stop <= len(text)


@given(st.text(max_size=80))
def test_pieces_are_disjoint_and_sentences_leave_only_blanks_out(text: str) -> None:
    for pattern in (WORD, COUNTED, TOKEN, SENTENCE):
        stop = 0
        for match in pattern.finditer(text):
            assert stop <= match.start() < match.end()
            if pattern is SENTENCE:
                assert not text[stop : match.start()].strip()
            stop = match.end()
        assert pattern is not SENTENCE or not text[stop:].strip()


@given(st.text(max_size=80))
def test_a_folded_text_knows_where_its_characters_come_from(text: str) -> None:
    plain = folded(text)
    assert len(plain.text) == len(plain.starts) == len(plain.stops)
    assert plain.starts == sorted(plain.starts)
    assert all(0 <= a < b <= len(text) for a, b in zip(plain.starts, plain.stops, strict=True))
    for start, stop in plain.find(plain.text[:3] or "x"):
        assert folded(text[start:stop]).text.startswith(plain.text[:1])


@pytest.mark.parametrize("text", [one for one in SAMPLES if one[0] not in "-•・{["])
def test_a_text_starts_and_ends_with_its_own_words(text: str) -> None:
    words = [match.group() for match in WORD.finditer(text)]
    if words:
        first = text[: text.index(words[0]) + len(words[0])]
        assert requirement(f"starts_with:{words[0]}").verify(first).holds
        assert requirement(f"ends_with:{words[-1]}").verify(f"{words[-1]}”").holds
        assert requirement(f"include:{words[0]}").verify(text.upper()).holds
        assert requirement(f"forbid:{words[-1]}").verify(text).holds is False
