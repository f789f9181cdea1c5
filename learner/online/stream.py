"""Trajectories on their way from the inbox thread to the training thread.

`Stream` is the staleness buffer behind a lock: the inbox offers, the trainer waits for whole
batches. It ends once, with a reason, and then every waiting call returns: `stop` is a clean end,
`fail` an error that the training thread raises: the run must not continue. `crash` is the death of
a thread: started again, the run resumes from its checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from dynatok_online.trajectory import Trajectory
from learner.online.pace import Pace
from learner.online.staleness import StalenessBuffer


class LearnerFailed(RuntimeError):
    """The run cannot continue; the message is the last line that people read."""


class _Waiting(NamedTuple):
    trajectory: Trajectory
    release: Callable[[], None]


class Stream:
    """A staleness buffer that one thread fills and another empties."""

    def __init__(
        self,
        max_policy_lag: int,
        per_version: int = 1,
        first_version: int = 0,
        group: Callable[[Trajectory], Hashable] | None = None,
        per_step: int = 1,
    ) -> None:
        """`group`: what trajectories that are to be taken together have in common. `per_version`,
        `per_step`: trajectories of a weight version, and of an optimizer step."""
        self._buffer = StalenessBuffer[_Waiting](
            max_policy_lag,
            per_version,
            first_version,
            group and (lambda waiting: group(waiting.trajectory)),
        )
        # What is to be taken together must have had the time to meet.
        self._pace = Pace(per_step) if group is None else None
        self._took_at: float | None = None
        self.flying: Callable[[], int] = lambda: 0
        """How many trajectories actors have leave for and have not sent."""
        self._changed = threading.Condition()
        self._stopped: str | None = None
        self._failure: str | None = None
        self._crash: BaseException | None = None
        self._first_came: float | None = None
        self.note = ""
        """What else there is to say where no batch comes."""
        self.hint: Callable[[], str] = lambda: ""
        """Asked for more of that when it happens."""
        self.idle: Callable[[], None] = lambda: None
        """Called now and then while no batch is there; may stop the stream."""

    def offer(self, trajectory: Trajectory, release: Callable[[], None] = lambda: None) -> bool:
        """Hand over a trajectory; False: it is too old, and was dropped and counted.

        `release` is called once when it no longer waits: taken, or dropped for its age.
        """
        with self._changed:
            if self._first_came is None:
                self._first_came = time.monotonic()
            waiting = _Waiting(trajectory, release)
            taken_in = self._buffer.offer(waiting, trajectory.oldest_version)
            self._changed.notify_all()
        return taken_in

    def room(self, serving: int) -> int:
        """How many trajectories may be in flight or waiting; see `StalenessBuffer` and `Pace`."""
        with self._changed:
            most = self._buffer.room(serving)
            return most if self._pace is None else self._pace.room(most)

    def advance(self, version: int) -> list[Trajectory]:
        """Weights of `version` were published. Returns what waited and is too old for it."""
        with self._changed:
            dropped = self._buffer.advance(version)
        for one in dropped:
            one.release()
        return [one.trajectory for one in dropped]

    @property
    def newest(self) -> int:
        """The weight version that was published last."""
        return self._buffer.version

    def waiting(self) -> list[Trajectory]:
        """What waits to be taken."""
        with self._changed:
            return [one.trajectory for one in self._buffer.waiting()]

    def take(
        self, count: int, deadline: float, start_deadline: float | None = None
    ) -> list[Trajectory] | None:
        """`count` trajectories, or None once the stream was stopped.

        Raises LearnerFailed when it failed, or when they did not come within `deadline` seconds,
        counted from the first one of all at the earliest; that may take `start_deadline` seconds
        (None: as long as any other). RuntimeError when a thread crashed.
        """
        called = time.monotonic()
        while True:
            self.idle()
            with self._changed:
                self._raise_failure()
                if self._stopped is not None:
                    return None
                batch = self._buffer.take(count)
                if batch is not None:
                    self._note_pace(called)
                    break
                if self._pace is not None:
                    self._pace.waits(time.monotonic() - called)
                waits, begun, field = deadline, called, "batch_deadline"
                if self._first_came is not None:
                    begun = max(called, self._first_came)
                elif start_deadline is not None:
                    waits, field = start_deadline, "start_deadline"
                left = begun + waits - time.monotonic()
                if left <= 0:
                    raise LearnerFailed(
                        f"no batch of {count} trajectories within {waits:g} s "
                        f"({len(self._buffer)} waiting, {self._buffer.offered} received, dropped "
                        f"{dict(self._buffer.dropped)}); see the actor's log, or raise "
                        f"learner.{field}{self.hint()}{self.note}"
                    )
                # Short waits, so that a signal handler of this thread gets its turn.
                self._changed.wait(min(left, 0.5))
        for one in batch:
            one.release()
        return [one.trajectory for one in batch]

    def _note_pace(self, called: float) -> None:
        now = time.monotonic()
        if self._pace is not None and self._took_at is not None:
            left, busy = len(self._buffer), called - self._took_at
            self._pace.took(left, self.flying(), now - called, busy)
        self._took_at = now

    def stop(self, reason: str) -> None:
        """No more batches; who waits returns. The first reason stays."""
        with self._changed:
            if self._stopped is None:
                self._stopped = reason
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """The run cannot continue: who waits raises LearnerFailed. The first reason stays."""
        with self._changed:
            if self._failure is None and self._stopped is None:
                self._failure = reason
            self._changed.notify_all()

    def crash(self, error: BaseException) -> None:
        """A thread of the learner died of `error`: who waits raises it. The first reason stays."""
        with self._changed:
            if self._failure is None and self._stopped is None and self._crash is None:
                self._crash = error
            self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raise LearnerFailed after `fail`, RuntimeError after `crash`; otherwise nothing."""
        with self._changed:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise LearnerFailed(self._failure)
        if self._crash is not None:
            name = type(self._crash).__name__
            raise RuntimeError(f"a thread died: {name}: {self._crash}") from self._crash

    @property
    def stopped(self) -> str | None:
        """Why it was stopped, or None."""
        return self._stopped

    @property
    def failure(self) -> str | None:
        """Why it failed, or None."""
        return self._failure

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on counting from what `counts` returned before a restart."""
        with self._changed:
            self._buffer.restore(counts)

    def counts(self) -> dict[str, int]:
        """`waiting`, `received`, `taken`, `policy_lag_max`, and `dropped_<cause>`."""
        with self._changed:
            buffer = self._buffer
            return {
                "waiting": len(buffer),
                "received": buffer.offered,
                "taken": buffer.taken,
                "policy_lag_max": buffer.policy_lag_max,
                "dropped_stale": sum(buffer.dropped.values()),
                **{f"dropped_{cause}": n for cause, n in buffer.dropped.items()},
            }


class Batches:
    """The stream as training takes it: `count` trajectories at a time.

    `on_batch` runs in the training thread, on each batch, before it is trained on. `waited` adds
    up the seconds spent waiting.
    """

    def __init__(
        self,
        stream: Stream,
        count: int,
        deadline: float,
        on_batch: Callable[[list[Trajectory]], None] | None = None,
        start_deadline: float | None = None,
    ) -> None:
        self._start_deadline = start_deadline
        self._stream = stream
        self._count = count
        self._deadline = deadline
        self._on_batch = on_batch
        self.waited = 0.0

    @property
    def newest(self) -> int:
        """The weight version that was published last."""
        return self._stream.newest

    def take(self) -> list[Trajectory] | None:
        """The next batch; None once the stream was stopped. Raises what `Stream.take` raises."""
        began = time.monotonic()
        batch = self._stream.take(self._count, self._deadline, self._start_deadline)
        self.waited += time.monotonic() - began
        if batch is not None and self._on_batch is not None:
            self._on_batch(batch)
        return batch
