"""Texts of tokens: characters that are spread over tokens, cuts, and where a character stands."""

from __future__ import annotations

from dynatok_online.tasks.task import SlotState
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict


def utf8(ids):
    return bytes(ids).decode("utf-8", "replace")


def test_a_character_is_shown_with_its_last_token():
    texts = TokenTexts(utf8)
    assert texts.extend("aé".encode()) == ["a", "", "é"]
    assert texts.extend("😀!".encode()) == ["", "", "", "😀", "!"]
    assert texts.text(0) == "aé😀!"
    assert [texts.token_at(i) for i in range(4)] == [0, 2, 6, 7]


def test_broken_bytes_do_not_hold_up_the_text():
    texts = TokenTexts(utf8)
    texts.extend([0xE2] * 9 + list(b"ok"))
    assert texts.text(0).endswith("ok")


def test_a_cut_forgets_and_goes_on():
    texts = TokenTexts(utf8)
    texts.extend("aéb".encode())
    texts.cut(1)
    assert texts.extend("ü".encode()) == ["", "ü"]
    assert texts.text(0) == "aü"


def test_verdicts_name_tokens_and_leave_out_words_of_two_states():
    texts = TokenTexts(utf8)
    texts.extend(b"abc DEF ghi JKL")
    states = {"case": SlotState("lower case", "lower"), "free": SlotState("anything")}
    found = verdict(texts, [(0, 9), (9, 15)], 0, states)
    # "ghi" reaches into the second pass.
    assert found == {
        "scores": {"case": 0.5},
        "units": [["case", 0, 2, True], ["case", 4, 6, False]],
    }
    assert verdict(texts, [(0, 9), (9, 15)], 1, states)["units"] == [["case", 12, 14, False]]


def test_what_is_missing_is_marked_at_the_last_token_of_its_pass():
    texts = TokenTexts(utf8)
    texts.extend(b"no such end and more")
    states = {"form": SlotState("two", "min_capital_words:2")}
    for k, (start, stop) in enumerate([(0, 12), (12, 20)]):
        found = verdict(texts, [(0, 12), (12, 20)], k, states)
        assert found["units"]
        for slot, first, last, holds in found["units"]:
            assert (slot, holds) == ("form", False)
            assert start <= first <= last < stop
