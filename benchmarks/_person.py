"""A person who edits beside sessions that collect, with too little room for them all.

The cache holds half of what the collecting sessions need, so that they wait for each other and are
preempted. Three arms take turns: the person alone, collecting alone, and both, in which the person
begins a new response whenever one has ended, until the collecting is done.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks._edit_cost import Timed
from benchmarks._edit_sessions import Bench
from benchmarks._page import write_section

NUMBER = 1000
"""The person's sessions have numbers from here on: prompts of their own."""


@dataclass
class Person:
    """What was measured, over the rounds."""

    sessions: int
    mode: str
    states: int
    blocks: int
    needed: int
    """Blocks of the cache, and those that the sessions need at once."""
    unloaded: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    """From each edit to its first new token, in ms."""
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    """Seconds of collecting, round by round."""
    preempted: int = 0
    """Of the person's passes."""
    others_preempted: int = 0
    """Of the collecting sessions', beside the person."""

    @property
    def p95_ratio(self) -> float:
        return float(np.quantile(self.loaded, 0.95) / np.quantile(self.unloaded, 0.95))

    @property
    def collection(self) -> float:
        """Its speed beside the person against its speed alone, median over rounds."""
        pairs = zip(self.alone, self.together, strict=True)
        return statistics.median(alone / both for alone, both in pairs)


async def one_round(bench: Bench, into: Person) -> None:
    """The three arms once. Raises RuntimeError for a session with problems."""
    alone = Timed()
    for k in range(3):
        bench.fresh_cache()
        await bench.watched(NUMBER + k, into.states, into.mode, alone, urgent=True)
    into.unloaded += alone.edits
    collecting = Timed()
    await bench.generate(into.sessions, 4, into.mode, collecting)
    both, beside = Timed(), Timed()
    load = asyncio.create_task(bench.generate(into.sessions, 4, into.mode, both))
    await asyncio.sleep(0.5)  # until the cache is full
    number = NUMBER
    while not load.done():
        person = asyncio.create_task(
            bench.watched(number, into.states, into.mode, beside, urgent=True)
        )
        await asyncio.wait([person, load], return_when=asyncio.FIRST_COMPLETED)
        if not person.done():  # from here on nobody is beside it
            person.cancel()
            await asyncio.wait([person])
            break
        into.preempted += (await person).counts.preemptions
        number += 1
    await load
    into.loaded += beside.edits
    into.alone += collecting.seconds
    into.together += both.seconds
    into.others_preempted += both.preemptions


def said(found: Person) -> list[str]:
    """The figures in words and a table."""
    rows = []
    for name, edits in (("alone", found.unloaded), ("beside collecting", found.loaded)):
        p50, p95 = np.quantile(edits, [0.5, 0.95])
        rows.append(f"| {name} | {len(edits)} | {p50:.1f} | {p95:.1f} |")
    ratios = [a / b for a, b in zip(found.alone, found.together, strict=True)]
    return [
        f"{found.sessions} collecting sessions ({found.mode}, 4 states) in a cache of "
        f"{found.blocks} blocks where {found.needed} are needed; a person's session ({found.mode}, "
        f"{found.states} states, edits by surprise, one response after the other) beside them.",
        "",
        "| the person | edits | p50, ms | p95, ms |",
        "|---|---|---|---|",
        *rows,
        "",
        f"p95 beside collecting is {found.p95_ratio:.2f} of p95 alone. Of the person's passes "
        f"{found.preempted} were preempted, of the others' {found.others_preempted}. Collecting "
        f"ran at {found.collection:.3f} of its speed alone (median of {len(ratios)} rounds, "
        f"{min(ratios):.3f} to {max(ratios):.3f}), the person's own tokens not counted.",
    ]


def write_person(page: Path, found: Sequence[Person], day: str) -> None:
    """Their section of the page."""
    lines = [f"`dynatok bench actor --person --page {page}`, {day}."]
    for one in found:
        lines += ["", *said(one)]
    write_section(page, "## A person among collecting sessions", lines)
