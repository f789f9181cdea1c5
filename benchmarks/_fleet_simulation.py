"""A model of a fleet that is too large to be started here: `dynatok bench fleet --simulate`.

What it is made of, and what it leaves out, stands in docs/scaling.md. Load of the learner and what
a version's announcement takes are two lines through measured fleets; arrival is bytes over the
narrowest line; staleness is simulated, event by event, with the learner's own rule of who may start
(`learner.online.staleness.room`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from benchmarks._fleet_report import FleetResult

_SIZES = (10, 100, 1000, 10_000)
_TRIES = 20
"""Hosts that are looked at for one with a free session."""


class Costs(msgspec.Struct, frozen=True):
    """CPU seconds of the learner's busiest thread, and what telling an actor takes."""

    cpu: float
    """A trajectory."""
    beat: float
    """A second of an actor that is connected."""
    tell: float
    """Seconds for each actor until all have heard of a version."""


class Setting(msgspec.Struct, frozen=True):
    """What a run is like."""

    actors_per_host: int = 8
    weight_gb: float = 14.0
    """A version: 7 billion parameters in bfloat16."""
    learner_gb_s: float = 3.0
    """The learner's line (25 Gbit/s)."""
    host_gb_s: float = 1.25
    """A host's line (10 Gbit/s)."""
    store_gb_s: float = 100.0
    """What the store gives to all hosts together."""
    trajectory_seconds: float = 20.0
    """Mean time to generate one; log-normal, sigma 0.5."""
    sessions: int = 16
    """Trajectories that an actor generates at a time."""
    per_step: int = 512
    step_seconds: float = 10.0
    max_policy_lag: int = 4


class Outcome(msgspec.Struct):
    """What became of one fleet."""

    actors: int
    generated_per_second: float
    """Trajectories that ended."""
    trained_per_second: float
    busy: float
    """Share of the sessions that had leave to generate."""
    learner_load: float
    """Share of its busiest thread, at what is generated; NaN where no fleet was measured."""
    lag_mean: float
    lag_max: int
    """Versions between a trajectory's first token and the newest one when it is trained on."""
    dropped: float
    """Share of the trajectories that were too old."""
    each_actor_s: float
    each_host_s: float
    store_s: float
    """Time until a version is everywhere: fetched by each actor, by each host, through a store."""


def _busiest(one: FleetResult) -> float:
    return max(one.channel_cpu_us, one.io_cpu_us) / 1e6


def costs(measured: Sequence[FleetResult]) -> Costs:
    """From the smallest and the largest fleet of those that were measured: what the large one took
    more is put down to its being connected. Raises ValueError where all are of one size."""
    sizes = sorted({one.actors for one in measured})
    if len(sizes) < 2:
        raise ValueError("two fleets of different sizes are needed")
    few, many = ([one for one in measured if one.actors == size] for size in (sizes[0], sizes[-1]))
    cpu = median(_busiest(one) for one in few)
    beat = median((_busiest(one) - cpu) * one.per_second / one.actors for one in many)
    return Costs(cpu, max(0.0, beat), median(one.heard_s / one.actors for one in many))


def read(files: Sequence[Path]) -> list[FleetResult]:
    """The rows of `--page`."""
    lines = [line for file in files if file.exists() for line in file.read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=FleetResult) for line in lines]


def check(measured: Sequence[FleetResult], paid: Costs) -> list[str]:
    """A table of what was measured beside what the model says; its two ends agree by making."""
    lines = [
        "| actors | fleets | busiest thread, µs per trajectory: measured | model "
        "| a version heard of by all, ms: measured | model |",
        "|---|---|---|---|---|---|",
    ]
    for size in sorted({one.actors for one in measured}):
        ones = [one for one in measured if one.actors == size]
        said = median(paid.cpu + paid.beat * size / one.per_second for one in ones)
        lines.append(
            f"| {size:,} | {len(ones)} | {median(map(_busiest, ones)) * 1e6:.0f} "
            f"| {said * 1e6:.0f} | {median(one.heard_s for one in ones) * 1e3:,.0f} "
            f"| {paid.tell * size * 1e3:,.0f} |"
        )
    return lines


def table(fleets: Sequence[Outcome]) -> list[str]:
    """A table of simulated fleets."""
    lines = [
        "| actors | generated /s | trained /s | sessions busy | learner's load | lag, mean (most) "
        "| too old | everywhere, s: to each actor | to each host | by a store |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in fleets:
        load = "" if one.learner_load != one.learner_load else f"{one.learner_load:.1%}"
        lines.append(
            f"| {one.actors:,} | {one.generated_per_second:,.1f} | {one.trained_per_second:,.1f} "
            f"| {one.busy:.1%} | {load} | {one.lag_mean:.2f} ({one.lag_max}) | {one.dropped:.1%} "
            f"| {one.each_actor_s:,.0f} | {one.each_host_s:,.0f} | {one.store_s:,.0f} |"
        )
    return lines


def arrival(actors: int, setting: Setting) -> tuple[float, float, float]:
    """Seconds until a version is everywhere: fetched by each actor, each host, through a store."""
    hosts = -(-actors // setting.actors_per_host)
    here = min(actors, setting.actors_per_host)
    size = setting.weight_gb
    each_actor = max(actors * size / setting.learner_gb_s, here * size / setting.host_gb_s)
    each_host = max(hosts * size / setting.learner_gb_s, size / setting.host_gb_s)
    down = max(hosts * size / setting.store_gb_s, size / setting.host_gb_s)
    return each_actor, each_host, size / setting.learner_gb_s + down


def simulate(
    actors: int,
    paid: Costs | None,
    setting: Setting | None = None,
    *,
    steps: int = 60,
    seed: int = 0,
) -> Outcome:
    """One fleet, whose weights go through a store. The first third of the steps is not counted."""
    setting = setting or Setting()
    draw = np.random.default_rng(seed)
    by_actor, by_host, by_store = arrival(actors, setting)
    hosts = -(-actors // setting.actors_per_host)
    # When each host has a version after its publication: one after the other, up to the last.
    first = setting.weight_gb / setting.learner_gb_s + setting.weight_gb / setting.host_gb_s
    after = np.linspace(min(first, by_store), by_store, hosts)
    slots = actors * setting.sessions
    published = [-np.inf]
    """When each version was published; version 0 was everywhere at the start."""
    taken = generating = 0
    waiting: deque[int] = deque()
    ends: list[tuple[float, int, int]] = []
    """When a trajectory is finished, its version, its host."""
    running = np.zeros(hosts, int)
    here = min(actors, setting.actors_per_host) * setting.sessions
    lags: list[int] = []
    dropped = 0
    now, counted_from, busy = 0.0, 0.0, 0.0
    trained = ended = 0

    def serving(host: int) -> int:
        version = len(published) - 1
        while version and published[version] + after[host] > now:
            version -= 1
        return version

    def start() -> None:
        """As many as there is room for, on hosts whose version the room allows."""
        nonlocal generating
        while generating < slots:
            exist = generating + len(waiting) + 1 + taken
            needed = max(0, -(-exist // setting.per_step) - 1 - setting.max_policy_lag)
            if needed >= len(published):
                return
            allowed = int(np.searchsorted(after, now - published[needed], side="right"))
            for _ in range(_TRIES if allowed else 0):
                host = int(draw.integers(allowed))
                if running[host] < here:
                    break
            else:
                return
            spread = draw.lognormal(-0.125, 0.5)
            heapq.heappush(ends, (now + setting.trajectory_seconds * spread, serving(host), host))
            running[host] += 1
            generating += 1

    def end() -> None:
        """The next trajectory is finished."""
        nonlocal generating, busy, now, dropped, ended
        at, version, host = heapq.heappop(ends)
        busy += generating * (at - now)
        now = at
        ended += 1
        generating -= 1
        running[host] -= 1
        if len(published) - 1 - version > setting.max_policy_lag:
            dropped += 1
        else:
            waiting.append(version)
        start()

    start()
    for step in range(steps):
        if step == steps // 3:
            lags, dropped, trained, ended = [], 0, 0, 0
            busy, counted_from = 0.0, now
        while len(waiting) < setting.per_step:
            if not ends:  # nobody may start before the newest weights have come
                now = published[-1] + float(after[0])
                start()
                continue
            end()
        lags += [len(published) - 1 - waiting.popleft() for _ in range(setting.per_step)]
        taken += setting.per_step
        trained += setting.per_step
        over = now + setting.step_seconds
        start()
        while ends and ends[0][0] <= over:
            end()
        busy += generating * (over - now)
        now = over
        published.append(now)
        newest = len(published) - 1
        fresh = deque(one for one in waiting if newest - one <= setting.max_policy_lag)
        dropped += len(waiting) - len(fresh)
        waiting = fresh
        start()
    elapsed = now - counted_from
    return Outcome(
        actors=actors,
        generated_per_second=ended / elapsed,
        trained_per_second=trained / elapsed,
        busy=busy / elapsed / slots,
        learner_load=nan if paid is None else ended / elapsed * paid.cpu + actors * paid.beat,
        lag_mean=float(np.mean(lags)),
        lag_max=max(lags),
        dropped=dropped / max(1, trained + dropped),
        each_actor_s=by_actor,
        each_host_s=by_host,
        store_s=by_store,
    )


def fleets(most: int, paid: Costs | None, setting: Setting) -> list[Outcome]:
    """Fleets of ten to `most` actors."""
    sizes = sorted({size for size in _SIZES if size < most} | {most})
    return [simulate(size, paid, setting) for size in sizes]
