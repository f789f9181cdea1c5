"""A run of two actors and a learner under faults, for as long as you like.

    python -m tests.launch.soak --minutes 30 --report docs/benchmarks/soak.md

In the first part of the time faults come at random: kill -9, SIGSTOP for 20 s and SIGCONT, a full
disk (the run folder lies on a small tmpfs; needs root), a slow disk, lost cache events, weights
that are read wrongly. In the last 40 % there are none that kill, so that what grows
can be seen. At the end: every trajectory that was sent was trained on, dropped for a reason, or
waits in a journal; none was trained on twice; and memory, descriptors and threads of
the processes, and /dev/shm, did not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from protocol.run.trace import Account, account
from tests.launch.running import gone, kept, launched, process_of, wait_for_step, waiting

DISK = "256m"
NAMES = ("learner", "actor", "actor-1")
ARGUMENTS = (
    *("--actors", "2", "--actor.sessions", "8", "--actor.evaluation.enabled", "false"),
    *("--time_limit", "0", "--restarts", "1000", "--learner.max_seconds", "0"),
    *("--learner.trajectories_per_step", "4", "--learner.training.max_steps", "1000000"),
    *("--learner.training.save_steps", "10", "--learner.batch_deadline", "600"),
)
LEAST = 60.0
"""A process is looked at for growth once it has lived for so many seconds."""


class Sample(NamedTuple):
    """One look at a process."""

    age: float
    memory: float
    descriptors: int
    threads: int


class Soak:
    """The state of a soak: the faults that were made, and what was seen."""

    def __init__(self, folder: Path, seed: int, on_tmpfs: bool) -> None:
        self.draw = random.Random(seed)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.runs = folder / "runs"
        self.said = folder / "said"
        self.on_tmpfs = on_tmpfs
        self.made: Counter[str] = Counter()
        self.samples: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        self.shared: list[float] = []

    def pause(self, seconds: float) -> None:
        """Wait, and look at everything once a second."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(1.0)

    def look(self) -> None:
        """One sample of each process, and of shared memory."""
        for name in NAMES:
            with contextlib.suppress(AssertionError, psutil.Error):
                one = process_of(self.launcher, self.run, name, wait=0)
                with one.oneshot():
                    self.samples[name, one.pid].append(
                        Sample(
                            time.time() - one.create_time(),
                            one.memory_info().rss / 2**20,
                            one.num_fds(),
                            one.num_threads(),
                        )
                    )
        mine = [one for one in Path("/dev/shm").iterdir() if self.run.name in one.name]
        with contextlib.suppress(FileNotFoundError):
            self.shared.append(sum(one.stat().st_blocks * 512 for one in mine) / 2**20)

    # ---- faults ----

    def kill(self) -> None:
        """kill -9 of one process."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stopped for 20 s."""
        with self._signal(signal.SIGSTOP) as process:
            self.pause(20)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> contextlib.nullcontext[psutil.Process]:
        one = process_of(self.launcher, self.run, self.draw.choice(NAMES), wait=120)
        one.send_signal(number)
        return contextlib.nullcontext(one)

    def full_disk(self) -> None:
        """No byte left for 15 s."""
        ballast = self.runs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        self.pause(15)
        ballast.unlink()

    def slow_disk(self) -> None:
        """Every fsync takes 0.3 s, for 15 s."""
        with self._switched("slow-disk"):
            self.pause(15)

    def lost_events(self) -> None:
        """A third of vLLM's cache events are lost, for 10 s."""
        with self._switched("drop-events"):
            self.pause(10)

    def refused_weights(self) -> None:
        """Actors read new weights wrongly, for 4 s."""
        with self._switched("refuse-weights"):
            self.pause(4)

    @contextlib.contextmanager
    def _switched(self, name: str) -> Iterator[None]:
        (self.faults / name).touch()
        yield
        (self.faults / name).unlink()

    # ---- the run ----

    def go(self, minutes: float) -> None:
        """Run for so long; the run folder is `run` then."""
        gentle: list[Callable[[], None]] = [self.slow_disk, self.lost_events, self.refused_weights]
        rough = [*gentle, self.kill, self.kill, self.stop]
        if self.on_tmpfs:
            rough.append(self.full_disk)
        os.environ["SOAK_FAULTS"] = str(self.faults)
        paths = [str(Path(__file__).parent / "soak_faults"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with (
            self.said.open("w") as said,
            launched(self.runs, *ARGUMENTS, errors=said) as self.launcher,
        ):
            self.run = wait_for_step(self.runs, self.launcher, 2)
            begun = time.monotonic()
            self._faults(rough, begun + 0.6 * 60 * minutes)
            self._faults(gentle, begun + 60 * minutes)
            self._wait_until_it_trains()
            family = psutil.Process(self.launcher.pid).children(recursive=True)
            self.launcher.send_signal(signal.SIGINT)
            self.launcher.wait(60)
            assert not gone(family, 10)
        assert self.launcher.returncode == 130, self.said.read_text()

    def _faults(self, makers: list[Callable[[], None]], end: float) -> None:
        first = self.draw.sample(makers, len(makers))  # each once, before any comes again
        while time.monotonic() < end:
            assert self.launcher.poll() is None, self.said.read_text()
            make = first.pop() if first else self.draw.choice(makers)
            print(f"{time.strftime('%H:%M:%S')} {make.__name__}", file=sys.stderr, flush=True)
            make()
            self.made[make.__name__] += 1
            self.pause(self.draw.uniform(2, 10))

    def _wait_until_it_trains(self) -> None:
        trained = len(account(self.run).trained)
        deadline = time.monotonic() + 180
        while len(account(self.run).trained) <= trained:
            assert self.launcher.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, "it does not train any more"
            self.pause(1)

    # ---- what came out ----

    def shared_at_first(self) -> float:
        """MiB of shared memory: the most in the first third of the time."""
        return max(self.shared[: len(self.shared) // 3 + 1])

    def growth(self) -> dict[str, tuple[float, Sample, Sample]]:
        """Name -> minutes, medians of the first and the last third, of its longest life."""
        found = {}
        for name in NAMES:
            lives = [
                [one for one in life if one.age > LEAST]
                for (of, _), life in self.samples.items()
                if of == name
            ]
            life = max(lives, key=len, default=[])
            if len(life) >= 9:
                third = len(life) // 3
                early, late = (
                    Sample(*(statistics.median(column) for column in zip(*part, strict=True)))
                    for part in (life[:third], life[-third:])
                )
                found[name] = ((life[-1].age - life[0].age) / 60, early, late)
        return found


def report(soak: Soak, minutes: float, found: Account, held: set[str]) -> str:
    """The figures, as a page for people."""
    learner = json.loads((soak.run / "learner.json").read_text())
    causes = ", ".join(f"{name} {count}" for name, count in found.causes().items())
    restarts = json.loads((soak.run / "result.json").read_text())["crashes"]
    lines = [
        "# A long run under faults",
        "",
        f"`python -m tests.launch.soak --minutes {minutes:g}`: the embedded model, one learner, "
        "two actors, on two CPU cores. What is checked, and what each fault does, stands in "
        "`tests/launch/soak.py`.",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in sorted(soak.made.items())),
        "",
        "| | |",
        "|---|---|",
        f"| optimizer steps | {learner['learner_steps']} |",
        f"| processes started again | {sum(restarts.values())} |",
        f"| weights refused | {learner['weights_rejected']} |",
        f"| trajectories sent | {len(found.sent)} |",
        f"| trained on | {len(found.trained)} |",
        f"| dropped | {causes or 'none'} |",
        f"| waiting in a journal | {len(found.open & held)} |",
        f"| lost | {len(found.open - held)} |",
        f"| trained on twice | {len(found.twice)} |",
        "",
        "Growth in the longest life of each process: medians of its first and last third, once it "
        f"is {LEAST:g} s old.",
        "",
        "| process | minutes | memory, MiB | descriptors | threads |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {span:.1f} | {a.memory:.0f} → {b.memory:.0f} "
            f"| {a.descriptors:g} → {b.descriptors:g} | {a.threads:g} → {b.threads:g} |"
            for name, (span, a, b) in soak.growth().items()
        ),
        "",
        f"Shared memory of the run: at most {soak.shared_at_first():.1f} MiB in the first third, "
        f"{soak.shared[-1]:.1f} MiB at the end; nothing was left afterwards.",
    ]
    return "\n".join(lines) + "\n"


def check(soak: Soak, found: Account, held: set[str]) -> None:
    """Raise AssertionError where something was lost, made twice, or grew."""
    assert found.twice == []
    assert found.open - held == set()
    assert len(found.trained) > 0
    for name, (span, early, late) in soak.growth().items():
        assert late.memory <= 1.1 * early.memory + 20, (name, span, early, late)
        assert late.descriptors <= early.descriptors + 4, (name, span, early, late)
        assert late.threads <= early.threads + 2, (name, span, early, late)
    assert soak.shared[-1] <= soak.shared_at_first() + 1
    assert not [one for one in Path("/dev/shm").iterdir() if soak.run.name in one.name]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A small tmpfs at `folder`, where that may be made; whether it was."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", str(folder)], check=False)


def soak(minutes: float, seed: int, to: Path | None = None) -> str:
    """Run it, check it, and give the page; `to` gets the page even if a check fails."""
    with tempfile.TemporaryDirectory(prefix="dynatok-soak-") as name:
        folder = Path(name)
        with small_disk(folder / "runs") as on_tmpfs:
            one = Soak(folder, seed, on_tmpfs)
            one.go(minutes)
            found, held = account(one.run), waiting(one.run) | kept(one.run)
            page = report(one, minutes, found, held)
            if to is not None:
                to.write_text(page)
            check(one, found, held)
    return page


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A run under faults, and what came out of it.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the faults (0)")
    parser.add_argument("--report", type=Path, help="also write the figures here")
    known = parser.parse_args()
    print(soak(known.minutes, known.seed, known.report))


if __name__ == "__main__":
    main()
