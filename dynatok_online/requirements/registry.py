"""Requirements found by name; compositions and contradictions; names that others add."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations

from dynatok_online.requirements.kinds import GENERAL, Kind
from dynatok_online.requirements.own import code_of, is_module, load
from dynatok_online.requirements.parameters import LONGEST, short
from dynatok_online.requirements.verdict import Counts, Requirement, Text, Unit

EXCLUSIVE = frozenset({"case", "words", "numbers", "ending", "envelope", "language"})
"""Families of which a text can follow one requirement at a time."""


KINDS: dict[str, Kind] = {}
"""All kinds that are known, by name: the general ones, and those registered since."""
REQUIREMENTS: dict[str, Requirement] = {}
"""The requirements that take no parameter."""


def register(*kinds: Kind) -> None:
    """Make kinds known by their names; again is no harm. ValueError for a name that is taken."""
    for kind in kinds:
        if KINDS.setdefault(kind.name, kind) is not kind:
            raise ValueError(f"there is a requirement {kind.name!r} already; choose another name")
        if ":" not in kind.example and kind.name not in REQUIREMENTS:
            REQUIREMENTS[kind.name] = kind.make(kind.name, "")


register(*GENERAL)


@lru_cache(maxsize=4096)
def requirement(name: str) -> Requirement:
    """The requirement of that name; ValueError names the nearest right one.

    `upper+no_comma` asks for both; ValueError where they contradict each other.
    `my.module:function` is a verifier of your own, see `dynatok_online.requirements.own`.
    """
    if len(name) > LONGEST:
        raise ValueError(
            f"requirement {short(name)} has {len(name):,} characters; write at most {LONGEST:,}"
        )
    if "+" in name:
        return _both(name, [requirement(part.strip()) for part in name.split("+")])
    if name in REQUIREMENTS:
        return REQUIREMENTS[name]
    kind, _, given = name.partition(":")
    if kind in KINDS:
        try:
            return KINDS[kind].make(name, given)
        except ValueError as error:
            example = KINDS[kind].example
            raise ValueError(f"requirement {name!r}: {error} (as in {example!r})") from None
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
    if code_of(name) and ("." in kind or is_module(kind) or not near):
        return load(name)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(KINDS)}"
    raise ValueError(f"there is no requirement {name!r}; {hint}")


def _both(name: str, members: list[Requirement]) -> Requirement:
    for one, other in combinations(members, 2):
        if why := contradiction(one.name, other.name):
            raise ValueError(f"requirement {name!r}: {why}")

    def locate(text: Text) -> Iterable[Unit]:
        return [unit for member in members for unit in member.locate(text)]

    counts: dict[str, tuple[int, int]] = {}
    for member in members:
        for quantity, (least, most) in member.counts.items():
            low, high = counts.get(quantity, (least, most))
            counts[quantity] = (max(low, least), min(high, most))
    text = " and ".join(member.text for member in members)
    return Requirement(name, "+".join(member.family for member in members), text, locate, counts)


@lru_cache(maxsize=4096)
def contradiction(name: str, other: str) -> str:
    """Why no text can follow both requirements; empty where one can, as far as is known."""
    for one in name.split("+"):
        for two in other.split("+"):
            first, second = requirement(one.strip()), requirement(two.strip())
            if first.name == second.name:
                continue
            if first.family == second.family and first.family in EXCLUSIVE:
                return f"{first.name!r} and {second.name!r} cannot both hold"
            if quantity := _apart(first.counts, second.counts):
                return f"{first.name!r} and {second.name!r} cannot both hold: see their {quantity}"
    return ""


def _apart(one: Counts, other: Counts) -> str:
    """A quantity that both bound, with no number between their bounds."""
    for quantity in one.keys() & other.keys():
        if max(one[quantity][0], other[quantity][0]) > min(one[quantity][1], other[quantity][1]):
            return quantity
    return ""


def family(name: str) -> tuple[Requirement, ...]:
    """All requirements of one family, in registry order; ValueError if there is none."""
    members = tuple(item for item in REQUIREMENTS.values() if item.family == name)
    if members:
        return members
    families = list(dict.fromkeys(item.family for item in REQUIREMENTS.values()))
    near = difflib.get_close_matches(name, families, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(families)}"
    raise ValueError(f"there is no requirement family {name!r}; {hint}")
