"""What `dynatok bench fleet` says: a card, a page, and a row for each fleet."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec
from rich.table import Table


class FleetResult(msgspec.Struct):
    """What one fleet reached."""

    actors: int
    per_second: float
    """Trajectories acknowledged, as fast as credits let them."""
    least: int
    most: int
    """Trajectories of the least and of the most served actor in that time."""
    learner_cpu_us: float
    """CPU time of the learner's process per trajectory in that time; its channel's thread and
    zmq's, which deciphers, are part of it."""
    channel_cpu_us: float
    io_cpu_us: float
    client_cpu_us: float
    """CPU time of the clients' processes per trajectory."""
    offered_per_second: float = 0.0
    """Of the paced part."""
    paced_per_second: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    """From sent to acknowledged, paced."""
    heard_s: float = 0.0
    """From announcing a version until the last actor has heard of it: the worst of a few."""
    joined_s: float = 0.0
    """From the first hello until all are there."""
    learner_mb: float = 0.0
    """Resident memory that the learner's process has gained."""
    load: float = 0.0
    """Of the machine, at the end: the mean number of runnable threads in the last minute."""

    @property
    def alone_per_second(self) -> float:
        """A second of the learner's busiest thread, in trajectories."""
        return 1e6 / max(self.channel_cpu_us, self.io_cpu_us, 1e-9)


_ROWS: tuple[tuple[str, Callable[[FleetResult], float], str], ...] = (
    ("trajectories/s, as fast as they can", lambda one: one.per_second, "{:,.0f}"),
    ("least served, of the most", lambda one: one.least / max(1, one.most), "{:.2f}"),
    ("learner's CPU per trajectory, µs", lambda one: one.learner_cpu_us, "{:.0f}"),
    ("  of it the channel's thread", lambda one: one.channel_cpu_us, "{:.0f}"),
    ("  of it zmq's thread", lambda one: one.io_cpu_us, "{:.0f}"),
    ("the learner alone, trajectories/s", lambda one: one.alone_per_second, "{:,.0f}"),
    ("clients' CPU per trajectory, µs", lambda one: one.client_cpu_us, "{:.0f}"),
    ("paced: offered, /s", lambda one: one.offered_per_second, "{:,.0f}"),
    ("paced: reached, /s", lambda one: one.paced_per_second, "{:,.0f}"),
    ("sent to acknowledged, p50, ms", lambda one: one.p50_ms, "{:.1f}"),
    ("sent to acknowledged, p99, ms", lambda one: one.p99_ms, "{:.1f}"),
    ("a version heard of by all, ms", lambda one: one.heard_s * 1000, "{:,.0f}"),
    ("all here after, s", lambda one: one.joined_s, "{:.1f}"),
    ("learner's memory, MiB", lambda one: one.learner_mb, "{:.0f}"),
)


def _cell(ones: Sequence[FleetResult], of: Callable[[FleetResult], float], form: str) -> str:
    """The median; least and most where there are several."""
    values = [of(one) for one in ones]
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def _ratio(
    few: Sequence[FleetResult], many: Sequence[FleetResult], of: Callable[[FleetResult], float]
) -> str:
    ratios = [of(b) / of(a) for a, b in zip(few, many, strict=True) if of(a)]
    return f"{median(ratios):.2f}" if ratios else ""


def card(few: Sequence[FleetResult], many: Sequence[FleetResult], tokens: int) -> Table:
    """For the terminal."""
    table = Table(title=f"fleet: trajectories of {tokens} tokens, CURVE, journal")
    table.add_column("")
    table.add_column(f"{few[0].actors} actors", justify="right")
    table.add_column(f"{many[0].actors} actors", justify="right")
    table.add_column("ratio", justify="right")
    for name, of, form in _ROWS:
        table.add_row(name, _cell(few, of, form), _cell(many, of, form), _ratio(few, many, of))
    return table


def write_page(
    page: Path, few: Sequence[FleetResult], many: Sequence[FleetResult], tokens: int
) -> None:
    """The page, and beside it a row of JSON for each fleet."""
    loads = [one.load for one in (*few, *many)]
    lines = [
        "# A fleet of actors",
        "",
        f"`dynatok bench fleet --actors {many[0].actors} --rounds {len(few)} --page {page}` "
        f"({os.cpu_count()} cores, {platform.python_implementation()} "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}; load {min(loads):.0f} to "
        f"{max(loads):.0f} with other work beside it). Real clients of the protocol without "
        f"engines, trajectories of {tokens} tokens over loopback, CURVE, journals; medians "
        f"(least–most) over {len(few)} rounds in which the two fleets took turns, ratios round by "
        "round.",
        "",
        f"| | {few[0].actors} actors | {many[0].actors} actors | ratio |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name.strip()} | {_cell(few, of, form)} | {_cell(many, of, form)} "
        f"| {_ratio(few, many, of)} |"
        for name, of, form in _ROWS
    ]
    lines += [
        "",
        "All clients share the machine's cores with the learner, so what is reached is a bound on "
        "both together. A fleet on other machines is bounded by the learner's busiest thread: *the "
        "learner alone* is a second of it.",
        "",
        f"Rows: [{page.stem}.jsonl]({page.stem}.jsonl).",
        "",
    ]
    page.write_text("\n".join(lines))
    rows = b"".join(msgspec.json.encode(one) + b"\n" for one in (*few, *many))
    page.with_suffix(".jsonl").write_bytes(rows)
