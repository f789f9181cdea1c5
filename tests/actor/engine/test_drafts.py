"""What is guessed, from rows as vLLM shows them: without names, in any order."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np

from actor.engine.drafts import SeenTexts


class Rows:
    """Texts that are written beside each other, as vLLM's runner holds them."""

    def __init__(self, proposer: SeenTexts) -> None:
        self.proposer = proposer
        self.texts: list[list[int]] = []

    def step(self, *new: list[int]) -> list[list[int]]:
        """Each row gets tokens; what is guessed of each."""
        for text, tokens in zip(self.texts, new, strict=True):
            text += tokens
        held = np.zeros((len(self.texts), 4096), np.int32)
        for i, text in enumerate(self.texts):
            held[i, : len(text)] = text
        lengths = np.array([len(text) for text in self.texts], np.int32)
        return self.proposer.propose(list(new), lengths, held, slot_mappings=None)


def proposer(most: int = 4) -> SeenTexts:
    config = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=most))
    return SeenTexts(config)


def written(rows: Rows, response: list[int], *, index: int = 0) -> tuple[int, int]:
    """Write a response into row `index` as vLLM would: steps, and tokens that were guessed."""
    at, steps, guessed = 0, 0, 0
    guess: list[int] = []
    while at < len(response):
        right = 0
        while right < len(guess) and response[at + right : at + right + 1] == [guess[right]]:
            right += 1
        new = response[at : at + right + 1]
        at, steps, guessed = at + len(new), steps + 1, guessed + len(guess)
        alone: list[list[int]] = [[] for _ in rows.texts]
        alone[index] = new
        guess = rows.step(*alone)[index]
    return steps, guessed


def test_a_text_that_says_something_again_is_guessed() -> None:
    rows = Rows(proposer())
    rows.texts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]]
    assert rows.step([3]) == [[4, 5, 6, 7]]


def test_what_was_written_before_starting_over_is_guessed_whatever_the_slot_says() -> None:
    rng = random.Random(0)
    begin, end = rng.choices(range(100), k=40), rng.choices(range(100), k=8)
    response = rng.choices(range(1000, 9000), k=120)
    rows = Rows(proposer())
    rows.texts = [[*begin, 500, *end]]
    assert written(rows, response)[0] == 120
    rows.texts = [[*begin, 501, *end]]
    steps, guessed = written(rows, response)
    assert steps < 40
    assert guessed <= 120


def test_of_equal_matches_the_one_that_begins_alike_is_followed() -> None:
    end = [7, 8, 9]
    rows = Rows(proposer())
    for begin, said in ((1, 21), (2, 22), (3, 23)):
        rows.texts = [[begin] * 10 + [50] + end]
        written(rows, [said, said + 10, said + 20, said + 30])
    for begin, said in ((1, 21), (2, 22), (3, 23)):
        rows.texts = [[begin] * 10 + [51] + end[:-1]]
        assert rows.step(end[-1:])[0][:2] == [said, said + 10]


def test_rows_are_known_again_wherever_they_stand() -> None:
    rows = Rows(proposer())
    rows.texts = [[1] * 9, [2] * 9, [1] * 9]
    for _ in range(5):
        rows.step([3], [4], [3])
        rows.texts.reverse()
    before = rows.proposer._tokens
    rows.step([3], [4], [3])
    assert rows.proposer._tokens == before + 3, "a row was taken for a new one"


def test_random_text_is_hardly_ever_guessed() -> None:
    rng = random.Random(1)
    rows = Rows(proposer())
    rows.texts = [rng.choices(range(6), k=50)]
    steps, guessed = written(rows, rng.choices(range(6), k=2000))
    assert steps > 1900
    assert guessed < 100


def test_one_row_among_many_guesses_nothing() -> None:
    rng = random.Random(2)
    rows = Rows(proposer())
    rows.texts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]]
    rows.texts += [rng.choices(range(10**6), k=20) for _ in range(63)]
    assert not any(rows.step([3], *([rng.randrange(10**6)] for _ in range(63))))


def test_old_texts_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr("actor.engine.drafts.ROOM", 1000)
    rng = random.Random(3)
    rows = Rows(proposer())
    for _ in range(50):
        rows.texts = [rng.choices(range(10**6), k=100)]
        rows.step([1])
    assert len(rows.proposer._places) + len(rows.proposer._older) < 2200
