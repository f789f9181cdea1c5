"""Adherence, latency and repetition on texts done by hand."""

import math

import pytest

from dynatok_online.adherence.measures import follow, interval, repetition
from dynatok_online.requirements import requirement


@pytest.mark.parametrize(
    ("text", "score", "latency"),
    [
        ("THE OWLS SLEEP. WE SAW", 1.0, 0),
        ("the owls sleep. WE SAW OWLS.", 0.5, 16),
        ("the OWLS sleep. we SAW owls.", 1 / 3, None),
        ("owls 3. 4. TREES", 0.5, 11),
        ("3. 4.", None, None),
    ],
)
def test_latency_is_the_way_to_the_first_compliant_sentence(
    text: str, score: float | None, latency: int | None
) -> None:
    found = follow(requirement("upper"), text)
    assert found.score == (None if score is None else pytest.approx(score))
    assert found.latency == latency


def test_a_word_that_was_under_way_does_not_count() -> None:
    found = follow(requirement("upper"), "oats SAIL.", before="the b")
    assert (found.score, found.latency) == (1.0, 5)


def test_repetition() -> None:
    assert repetition("a b c") == 0
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d A B C D") == pytest.approx(1 / 5)


def test_interval() -> None:
    one = interval([1.0, 2.0, 3.0])
    assert (one.mean, one.lowest, one.highest, one.count) == (2.0, 1.0, 3.0, 3)
    assert one.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert str(one) == "2.000 ± 2.484"
    assert str(interval([0.5])) == "0.500"
    assert interval([0.5]).signed == "+0.500"
    assert interval([-0.25, -0.25]).signed == "-0.250 ± 0.000"
    with pytest.raises(ValueError):
        interval([])


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (61, 2.000)]
)
def test_the_interval_is_students_at_any_number_of_values(count: int, quantile: float) -> None:
    values = [float(i % 2) for i in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1))
    wanted = quantile * deviation / math.sqrt(count)
    assert interval(values).half == pytest.approx(wanted, rel=3e-4)
