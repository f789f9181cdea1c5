"""The tiny world's own requirements, and where they are known."""

import subprocess
import sys

import pytest

from dynatok_online.requirements import contradiction, family, requirement
from dynatok_online.tiny import topics

topics.register()

CASES = [
    ("sea", "we saw BOATS by the Pier", 1.0),
    ("sea", "we saw owls by the trail", 0.0),
    ("sea", "boats near the museum", 0.5),
    ("forest", "owls near the grove", 1.0),
    ("forest", "gulls", 0.0),
    ("forest", "gulls, owls", 0.5),
    ("city", "trams near the plaza", 1.0),
    ("city", "a gull's nest by the pier", 0.0),
    ("city", "crabs and trams and ferns and towers", 0.5),
    ("sea", "we saw", None),
]


@pytest.mark.parametrize(("name", "text", "score"), CASES)
def test_score(name: str, text: str, score: float | None) -> None:
    assert requirement(name).verify(text).score == score


def test_word_lists_share_no_word() -> None:
    lists = list(topics.WORD_LISTS.values())
    assert len(frozenset[str]().union(*lists)) == sum(map(len, lists))
    assert all(word not in topics.NUMBER_WORDS for words in lists for word in words)


def test_they_are_one_family_in_order() -> None:
    assert [item.name for item in family("words")] == ["sea", "forest", "city"]
    assert "cannot both hold" in contradiction("sea", "city")
    assert not contradiction("upper", "sea")
    assert requirement("upper+sea").verify("BOATS").holds


def test_registering_again_is_no_harm() -> None:
    topics.register()
    assert [item.name for item in family("words")] == ["sea", "forest", "city"]


@pytest.mark.parametrize(
    ("using", "known"),
    [
        ("", False),
        ("import dynatok_online.tiny", False),
        ("from dynatok_online.tiny import resolve; resolve('tiny')", True),
        ("from dynatok_online.tiny import resolve; resolve('gpt2')", False),
        ("import dynatok_online.tiny.world", True),
        ("from actor.task_source import tasks; next(tasks('tiny', 'train', 0))", True),
    ],
)
def test_they_are_known_where_the_tiny_world_is_used(using: str, known: bool) -> None:
    code = f"{using}\nfrom dynatok_online.requirements import KINDS; print('sea' in KINDS)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == str(known)
