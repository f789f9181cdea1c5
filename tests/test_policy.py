"""Reuse policies as configs write them."""

from __future__ import annotations

import pytest

from dynatok_online.policy import Policy, Refresh, parse_policy


def test_every_way_to_write_one() -> None:
    assert parse_policy("exact") == Policy("exact")
    assert parse_policy("sticky") == Policy("sticky")
    assert parse_policy("none") == Policy("none")
    assert parse_policy("refresh:64") == Policy("refresh:64", (64, 64))
    assert parse_policy("refresh:64+16") == Policy("refresh:64+16", (64, 64), 16)
    assert parse_policy("refresh:0-128") == Policy("refresh:0-128", (0, 128))
    assert parse_policy("refresh:8-9+2") == Policy("refresh:8-9+2", (8, 9), 2)


def test_which_ones_keep_blocks() -> None:
    kept = [one for one in ("exact", "sticky", "none", "refresh:0") if parse_policy(one).keeps]
    assert kept == ["sticky", "refresh:0"]


@pytest.mark.parametrize(
    "text",
    ["", "stikcy", "refresh", "refresh:", "refresh:-1", "refresh:1.5", "refresh:1+", "Exact"],
)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"actor.reuse is .*exact, sticky, none or refresh:64"):
        parse_policy(text, "actor.reuse")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh:3-9"):
        parse_policy("refresh:9-3")
    with pytest.raises(ValueError, match="write exact, sticky or refresh:64"):
        parse_policy("none", none=False)


def test_a_range_is_drawn_for_every_pass_alike_for_everybody() -> None:
    policy = parse_policy("refresh:5-8+3")
    drawn = [policy.refresh(f"7/task/{at}") for at in range(200)]
    assert drawn == [policy.refresh(f"7/task/{at}") for at in range(200)]
    assert {one.last for one in drawn} == {5, 6, 7, 8}
    assert {one.first for one in drawn} == {3}
    assert parse_policy("sticky").refresh("anything") == Refresh(0, 0)


def test_turned_keeps_without_a_width() -> None:
    policy = parse_policy("turned")
    assert (policy.keeps, policy.turns, policy.fixed_width) == (True, True, False)
    assert parse_policy("sticky").fixed_width
    with pytest.raises(ValueError, match=r"actor.reuse is 'turned'.*write sticky"):
        parse_policy("turned", "actor.reuse", turned=False)
