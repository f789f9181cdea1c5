"""How many actors one learner serves, and how fairly: `dynatok bench fleet`.

Real clients of the protocol without engines, in a few processes of their own, send trajectories
over loopback to a real learner channel with its journal and CURVE. Ten of them and the whole fleet
take turns, so that the two can be compared on a machine that also does other things:

- as fast as credits let them: trajectories a second, the least and the most served, and the CPU
  time of each trajectory, of the learner by thread and of the clients;
- paced at half of what ten reached: time from sent to acknowledged;
- new weights announced: time until every actor has heard of a version.

The clients share the machine with the learner. What a fleet on other machines would reach is
bounded by the learner's busiest thread: *the learner alone* is a second of it in trajectories.

The learner takes each trajectory as soon as it is stored. `--room` bounds what may be in flight or
waiting in all, as `learner.max_policy_lag` does in a run: then credits are few, and are shared out.

`--simulate` starts no fleet: a model gives the figures of larger ones, and stands beside those that
were measured (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from benchmarks._consumer import Consumer
from benchmarks._fleet_clients import RUN, Fleet
from benchmarks._fleet_report import FleetResult, card, write_page
from benchmarks._fleet_simulation import Setting, check, costs, fleets, read, table
from benchmarks._page import write_between
from protocol.config import ProtocolConfig
from protocol.delivery.durable import JournaledStore
from protocol.delivery.learner_channel import LearnerChannel
from protocol.wire.keys import make_keys
from protocol.wire.messages import Canary, WeightManifest, WeightsReady

_FEW = 10
_VERSIONS = 5
_CANARY = Canary((), (), 0.0)


def measure(
    actors: int,
    *,
    seconds: float = 10.0,
    pace: float | None = None,
    room: int = 0,
    tokens: int = 256,
    processes: int = 2,
) -> FleetResult:
    """One fleet. `pace`: trajectories a second of all actors together in the paced part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_keys(folder / "keys")
        config = ProtocolConfig(
            endpoint="tcp://127.0.0.1:0",
            keys=str(folder / "keys"),
            credits=16,
            connect_seconds=120.0,
        )
        store = JournaledStore(folder / "inbox", RUN)
        channel = LearnerChannel(
            config,
            RUN,
            store=store,
            receipts=store.receipts,
            room=None if room == 0 else lambda serving: room,
        )
        before = psutil.Process().memory_info().rss
        channel.start()
        consumer = Consumer(channel)
        began = time.monotonic()
        config = msgspec.structs.replace(config, endpoint=channel.endpoint)
        fleet = Fleet(config, actors, processes, tokens)
        try:
            fleet.expect("here", 300.0)
            joined = time.monotonic() - began
            fast = _as_fast(fleet, seconds)
            offered = pace or fast.per_second / 2
            fleet.tell("send", actors / offered)
            time.sleep(seconds)
            latencies = np.array([one for part in fleet.tell("stop") for one in part])
            heard = max(_announce(channel, fleet, version) for version in range(1, 1 + _VERSIONS))
            memory = psutil.Process().memory_info().rss - before
            fleet.tell("leave")
        finally:
            fleet.close()
            consumer.close()
            channel.close()
            store.close()
    return msgspec.structs.replace(
        fast,
        actors=actors,
        offered_per_second=offered,
        paced_per_second=len(latencies) / seconds,
        p50_ms=float(np.percentile(latencies, 50)) * 1000,
        p99_ms=float(np.percentile(latencies, 99)) * 1000,
        heard_s=heard,
        joined_s=joined,
        learner_mb=memory / 2**20,
        load=os.getloadavg()[0],
    )


def _as_fast(fleet: Fleet, seconds: float) -> FleetResult:
    """The part without a pace, once it runs evenly."""
    fleet.tell("send", 0.0)
    time.sleep(min(2.0, seconds / 2))
    before = fleet.tell("counts")
    began, threads, cpu = time.monotonic(), _thread_seconds(), time.process_time()
    time.sleep(seconds)
    after = fleet.tell("counts")
    elapsed, cpu = time.monotonic() - began, time.process_time() - cpu
    used = {name: second - threads.get(name, 0.0) for name, second in _thread_seconds().items()}
    fleet.tell("stop")
    counts = [
        b - a
        for (earlier, _), (later, _) in zip(before, after, strict=True)
        for a, b in zip(earlier, later, strict=True)
    ]
    clients = sum(b[1] - a[1] for a, b in zip(before, after, strict=True))
    each = 1e6 / max(1, sum(counts))
    return FleetResult(
        actors=len(counts),
        per_second=sum(counts) / elapsed,
        least=min(counts),
        most=max(counts),
        learner_cpu_us=cpu * each,
        channel_cpu_us=used.get("learner-channel", 0.0) * each,
        io_cpu_us=sum(s for name, s in used.items() if name.startswith("ZMQbg/IO")) * each,
        client_cpu_us=clients * each,
    )


def _thread_seconds() -> dict[str, float]:
    """CPU seconds of this process's threads, by name. Those of zmq name themselves; ours do not."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    seconds: dict[str, float] = {}
    for task in psutil.Process().threads():
        name = python.get(task.id)
        if name is None:
            name = Path(f"/proc/self/task/{task.id}/comm").read_text().strip()
        seconds[name] = seconds.get(name, 0.0) + task.user_time + task.system_time
    return seconds


def _announce(channel: LearnerChannel, fleet: Fleet, version: int) -> float:
    """Seconds until the last actor has heard of a version."""
    began = time.monotonic()
    channel.announce(WeightsReady(WeightManifest(version, "zmq", 0, 0, (), _CANARY)))
    while time.monotonic() - began < 60:
        time.sleep(0.2)
        heard = [one for part in fleet.tell("heard", version) for one in part]
        if all(one is not None for one in heard):
            return max(one for one in heard) - began
    raise AssertionError(f"version {version} had not arrived everywhere after 60 s")


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  dynatok bench fleet --actors 1000 --rounds 3\n"
        "  dynatok bench fleet --simulate 10000 --page docs/scaling.md",
    )
    parser.add_argument("--actors", type=int, default=1000, help="of the large fleet (1000)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part (15)")
    parser.add_argument("--rounds", type=int, default=1, help="of both fleets in turn (1)")
    parser.add_argument("--room", type=int, default=0, help="in flight or waiting in all; 0: any")
    parser.add_argument("--tokens", type=int, default=256, help="of a trajectory (256)")
    parser.add_argument("--processes", type=int, default=2, help="that hold the clients (2)")
    parser.add_argument(
        "--page", type=Path, help="write the figures into this page, rows beside it"
    )
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="fleets of up to N actors, by a model"
    )
    parser.add_argument(
        "--measured",
        type=Path,
        nargs="+",
        default=[Path("docs/benchmarks/fleet.jsonl")],
        help="rows of fleets that were measured, for --simulate",
    )
    options = parser.parse_args(arguments)
    if options.simulate is not None:
        return _simulate(options.simulate, read(options.measured), options.page)
    fleet = partial(
        measure,
        seconds=options.seconds,
        room=options.room,
        tokens=options.tokens,
        processes=options.processes,
    )
    few, many = [], []
    console = Console(stderr=True)
    # Each in a process of its own, whose memory nothing before it has used.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for _ in track(range(options.rounds), "rounds", console=console):
            few.append(pool.submit(fleet, min(_FEW, options.actors)).result())
            pace = few[-1].offered_per_second
            many.append(pool.submit(fleet, options.actors, pace=pace).result())
    console.print(card(few, many, options.tokens))
    share = median(b.per_second / a.per_second for a, b in zip(few, many, strict=True))
    console.print(f"the large fleet reaches {share:.2f} of the small one (at least 0.8 is asked)")
    if options.page is not None:
        write_page(options.page, few, many, options.tokens)
    print(msgspec.json.encode({"few": few, "many": many, "share": share}).decode())
    return 0


def _simulate(most: int, measured: list[FleetResult], page: Path | None) -> int:
    setting = Setting()
    paid = costs(measured) if len({one.actors for one in measured}) > 1 else None
    found = fleets(most, paid, setting)
    lines = [f"`dynatok bench fleet --simulate {most} --page docs/scaling.md`", "", *table(found)]
    if paid is None:
        lines += ["", "The learner's load is empty: no two fleets were measured yet."]
    else:
        lines += ["", "What was measured, beside the model:", "", *check(measured, paid)]
    print("\n".join(lines), file=sys.stderr)
    if page is not None:
        write_between(page, "fleet", lines)
    print(msgspec.json.encode({"costs": paid, "setting": setting, "fleets": found}).decode())
    return 0
