"""Starts the processes of a run, watches them, starts one again that died, leaves nothing behind.

A run ends in one of four ways: every child exits 0 (`finished`); a signal or `RUN/stop.json` asks
for the end (`interrupted`); a child fails for good, or the time limit is reached (`failed`). In
each of them all processes of the run are gone within `patience` and two seconds, and `result.json`
is written. `stop.json`, which SIGUSR1 writes too, gives the learner `saving` seconds more, to
save. Where the supervisor itself is killed, the janitor does the clearing.

A child that crashes is started again alone, with its own command: an actor sends what its journal
holds and takes the weights anew, the learner resumes from its last checkpoint while the actors
fill their journals and then wait. A child that says itself that going on makes no sense (exit
codes 2 and 3) is not, nor one that has crashed more often than `restarts` allows. An actor that
is given up for its crashes ends the run only where no other actor runs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from launch import process, result
from launch.janitor import Janitor
from protocol.run.json_files import read_json
from protocol.run.stop import StopRequest, ask_to_stop, asked_to_stop, forget_stop

PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL; with the killing itself, less than ten."""
ENDING = 900.0
"""Seconds that the others may take to finish once the first child has ended well."""
INTERVAL = 0.2
"""Seconds between two looks at the children."""
SCAN = 2.0
"""Seconds between two looks at the shared memory that they have mapped."""
FINAL = (2, 3)
"""Exit codes of a child that must not be started again: it was asked for what cannot be run, or
found that the run must not continue."""
SAVING = 120.0
"""Seconds that the learner may take to save where that is asked for."""
BACK_OFF = (0.5, 8.0)
"""Seconds before the first restart; doubled with every further one, up to the second number."""
HEALTHY = 600.0
"""A child that ran for so many seconds before it crashed begins to count anew."""
LEARNER = "learner"
"""Name of the child whose good end is the end of the run."""


class Command(msgspec.Struct, frozen=True):
    """A process to start."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    stop_signal: signal.Signals = signal.SIGTERM
    """What asks it to end."""
    rejoins: bool = False
    """An actor that a scheduler may stop before the end of the run: it is then started again."""


class Display(Protocol):
    """Shows how the run goes; called a few times a second."""

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """`state`: child name -> `running` or how it ended."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Nothing more follows."""


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended."""

    status: str
    """`finished`, `interrupted` or `failed`."""
    code: int
    """Exit code for the shell."""
    message: str
    """For people; empty where all is well."""
    seconds: float


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted instead of obeyed; so is SIGUSR1."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.count = 0
        self.save = False
        """SIGUSR1 came: the place is needed soon."""

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in self._NUMBERS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
            return
        self.received = signal.Signals(number)
        self.count += 1


class _Member:
    """One process of the run, through all of its starts."""

    def __init__(self, command: Command, run_dir: Path, janitor: Janitor) -> None:
        self.name = command.name
        self.stop_signal = command.stop_signal
        self.rejoins = command.rejoins
        self.log = run_dir / "logs" / f"{command.name}.log"
        self.segments: set[Path] = set()
        """Shared memory that it was seen to use since its last start."""
        self.crashes = 0
        self.restart_at: float | None = None
        self.given_up = False
        """Whether the run goes on without it."""
        self._command = command
        self._janitor = janitor

    def start(self, now: float) -> None:
        """Start it, or start it again."""
        command = self._command
        self.child = process.Child(command.name, command.argv, command.env, self.log)
        self._janitor.watch(self.child.pid)
        self._began = now
        self.restart_at = None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs or is about to be started again."""
        return None if self.restart_at is not None else self.child.poll()

    def crashed(self, now: float) -> float:
        """Count a crash; seconds until it is started again."""
        self.crashes = 1 if now - self._began > HEALTHY else self.crashes + 1
        wait = min(BACK_OFF[0] * 2 ** (self.crashes - 1), BACK_OFF[1])
        self.restart_at = now + wait
        return wait

    def look(self) -> set[Path]:
        """What it maps now is remembered: after a kill -9 it must be removed."""
        mapped = process.shared_memory(process.members([self.child.pid]))
        self.segments |= mapped
        return mapped

    def describe(self, now: float) -> str:
        """`running`, or how it ended."""
        if self.restart_at is not None:
            return f"starting again in {max(0.0, self.restart_at - now):.0f} s"
        code = self.child.poll()
        return "running" if code is None else process.describe_exit(code)


def supervise(
    run_dir: Path,
    commands: Sequence[Command],
    display: Display,
    *,
    restarts: int = 0,
    time_limit: float = 0.0,
    saving: float = SAVING,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run `commands` until all have ended, one has failed, or a signal or the limit comes.

    `restarts`: how often in a row each of them may crash and be started again.
    """
    forget_stop(run_dir)
    started = clock()
    members: list[_Member] = []
    with Signals() as signals:
        janitor = Janitor()
        try:
            for command in commands:
                member = _Member(command, run_dir, janitor)
                member.start(clock())
                members.append(member)
            watch = _Watch(
                run_dir, members, signals, display, janitor, restarts, time_limit, saving, clock
            )
            end = watch.run()
        finally:
            if signals.received is not None:
                display.say("stopping; Ctrl-C again kills")
            begun = signals.count
            process.stop(
                [member.child.pid for member in members],
                patience,
                set().union(*(member.segments for member in members)),
                hurry=lambda: signals.count > begun,
                ask={member.child.pid: member.stop_signal for member in members},
            )
            for member in members:
                member.child.poll()
            janitor.dismiss()
            display.close()
    status, code, message = end
    if status == "finished" and (unfinished := _unfinished(run_dir)):
        log = run_dir / "logs" / "learner.log"
        status, code, message = "failed", 1, f"{unfinished}; log: {log}"
    seconds = clock() - started
    crashes = {member.name: member.crashes for member in members if member.crashes}
    result.write(run_dir, result.collect(run_dir, status, seconds) | {"crashes": crashes})
    return Outcome(status, code, message, seconds)


def _unfinished(run_dir: Path) -> str:
    """Why a run whose processes have all ended well has not finished; empty if it has."""
    try:
        finished = read_json(run_dir / "learner.json").get("finished")
    except OSError as error:
        return f"whether the learner finished is not known: learner.json: {error.strerror}"
    return "the learner ended before its last step" if finished is False else ""


_End = tuple[str, int, str]
"""Status, exit code, message."""


class _Watch:
    """Looks at the members until the run is over; they may still be alive then."""

    def __init__(
        self,
        run_dir: Path,
        members: Sequence[_Member],
        signals: Signals,
        display: Display,
        janitor: Janitor,
        restarts: int,
        time_limit: float,
        saving: float,
        clock: Callable[[], float],
    ) -> None:
        self._run_dir = run_dir
        self._saving = saving
        self._asked_at: float | None = None
        self._members = members
        self._signals = signals
        self._display = display
        self._janitor = janitor
        self._restarts = restarts
        self._time_limit = time_limit
        self._clock = clock
        self._started = clock()
        self._next_scan = self._started
        self._ending: float | None = None

    def run(self) -> _End:
        """How it ended."""
        while True:
            now = self._clock()
            end = self._crashes(now) or self._ends(now)
            if end is not None:
                return end
            for member in self._members:
                if member.restart_at is not None and now >= member.restart_at:
                    member.start(now)
            if now >= self._next_scan:
                for member in self._members:
                    self._janitor.remember(member.look())
                self._next_scan = now + SCAN
            state = {member.name: member.describe(now) for member in self._members}
            self._display.update(state, now - self._started)
            time.sleep(INTERVAL)

    def _crashes(self, now: float) -> _End | None:
        for member in self._members:
            code = member.poll()
            if code is None or member.given_up or (code == 0 and not self._left(member)):
                continue
            alone = any(one.name == LEARNER and one.poll() == 0 for one in self._members)
            final = code in FINAL or alone
            if not final and member.crashes >= self._restarts and self._others_act(member):
                member.given_up = True
                self._clear(member)
                self._display.say(
                    f"{member.name} {process.describe_exit(code)} and is given up; the run goes on "
                    f"with the other actors (log: {member.log})"
                )
                continue
            if final or member.crashes >= self._restarts:
                again = f" {member.crashes + 1} times" if member.crashes else ""
                # 2: the child refused what it was asked to do, and its last line says why.
                return "failed", 2 if code == 2 else 1, _epitaph(member, code, again)
            how = process.describe_exit(code)
            wait = member.crashed(now)
            self._clear(member)
            self._display.say(
                f"{member.name} {how}; starting it again in {wait:g} s "
                f"(restart {member.crashes} of {self._restarts}; log: {member.log})"
            )
        return None

    def _left(self, member: _Member) -> bool:
        """Whether it has ended well although the run needs it still."""
        return (
            member.rejoins
            and self._asked_at is None
            and not read_json(self._run_dir / "learner.json").get("finished")
            and any(one.name == LEARNER and one.poll() is None for one in self._members)
        )

    def _others_act(self, member: _Member) -> bool:
        """Whether another actor runs, or is about to be started again."""
        return member.name != LEARNER and any(
            one.poll() is None for one in self._members if one.name not in (LEARNER, member.name)
        )

    def _clear(self, member: _Member) -> None:
        """Remove what a dead member left, except for memory that others use, too."""
        others = [one.child.pid for one in self._members if one is not member]
        used = process.shared_memory(process.members(others))
        process.stop([member.child.pid], 1.0, member.segments - used, keep=used)
        member.segments = set()

    def _ends(self, now: float) -> _End | None:
        running = [member for member in self._members if member.poll() is None]
        if not running:
            return "finished", 0, ""
        if self._signals.received is not None:
            name = self._signals.received.name
            return "interrupted", 128 + self._signals.received, f"stopped by {name}"
        if (end := self._asked(now, running)) is not None:
            return end
        if self._time_limit and now - self._started > self._time_limit:
            return "failed", 1, f"time limit of {self._time_limit:g} s reached" + _logs(running)
        if not any(member.name == LEARNER for member in running):
            self._ending = self._ending or now + ENDING
            if now > self._ending:
                return "failed", 1, "the others have ended, but " + _logs(running).lstrip("; ")
        return None

    def _asked(self, now: float, running: Sequence[_Member]) -> _End | None:
        """Where the run is asked to end: the learner first, which saves."""
        if self._signals.save and self._asked_at is None:
            ask_to_stop(self._run_dir, StopRequest("SIGUSR1", again=True))
        request = asked_to_stop(self._run_dir)
        if request is None:
            return None
        if self._asked_at is None:
            self._asked_at = now
            self._display.say(f"asked to stop by {request.reason}; the learner saves")
        learner = next((one for one in running if one.name == LEARNER), None)
        if learner is None:
            return "interrupted", 0, f"stopped by {request.reason}"
        if now - self._asked_at > self._saving:
            late = f"; the learner had not saved {self._saving:g} s later (log: {learner.log})"
            return "interrupted", 1, f"stopped by {request.reason}{late}"
        return None


def _epitaph(member: _Member, code: int, again: str) -> str:
    child = member.child
    words = child.last_words(1 if code in FINAL else 12)
    end = f"{child.name} (pid {child.pid}) {process.describe_exit(code)}{again}; log: {child.log}"
    if not words:
        return f"{end} (empty)"
    if code in FINAL:
        return f"{words} (log: {child.log})"
    quoted = "\n".join(f"  | {line}" for line in words.splitlines())
    return f"{end}; its last words:\n{quoted}"


def _logs(running: Sequence[_Member]) -> str:
    return "; still running: " + ", ".join(f"{m.name} (log: {m.log})" for m in running)
