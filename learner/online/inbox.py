"""What comes from the actors: audited, then handed to the stream, its credit returned once.

One thread reads the protocol's channel. A trajectory leaves it in one of three ways: it waits in
the stream (its credit goes back when the trainer takes it), it was too old (dropped and counted
there), or it is rejected here and counted by cause.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from dynatok_online.rows.plan import needed_tokens
from dynatok_online.spans.build import audit
from dynatok_online.trajectory import Trajectory
from learner.log import say
from learner.online.staleness import ARRIVED_STALE
from learner.online.stream import Stream
from protocol.delivery.learner_channel import LearnerChannel
from protocol.delivery.received import PeerLost, Received
from protocol.wire.messages import (
    Bye,
    Hello,
    Skipped,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsReady,
    WeightsRejected,
)

_STRIKES = 3
"""So many refusals of weights in a row, and an actor is refused itself: it would only grow
staler, or never start."""
_AGAIN_SECONDS = 2.0
"""After a refusal the newest weights are offered again this much later, times the strikes."""


class Readers(Protocol):
    """What a weight transport is told of its readers."""

    @property
    def failure(self) -> BaseException | None:
        """What ended a thread of the transport, if one has died."""

    def holds(self, version: int) -> bool:
        """Whether a version can be read still."""

    def joined(self, reader: str) -> None:
        """A reader is told of the latest version."""

    def applied(self, reader: str, version: int) -> None:
        """A reader serves a version."""

    def rejected(self, reader: str, version: int) -> None:
        """A reader will not use a version."""

    def left(self, reader: str) -> None:
        """A reader is gone."""


class Inbox:
    """A thread between the channel and the stream; start it with `start`."""

    def __init__(
        self,
        channel: LearnerChannel,
        stream: Stream,
        readers: Readers,
        audit_mismatch_threshold: int = 0,
        *,
        done: Callable[[Received], None] = lambda event: None,
        dropped: Callable[[Trajectory, str], None] = lambda trajectory, cause: None,
        newest: Callable[[], WeightManifest | None] = lambda: None,
        max_row_tokens: int = 0,
        strategy: str = "packed",
        again_seconds: float = _AGAIN_SECONDS,
    ) -> None:
        """`done`: a trajectory was taken for training, or dropped. `dropped`: which, and why.
        `newest`: the weights that were announced last. `max_row_tokens`: what a row of this
        `strategy` can hold; a trajectory with a longer pass is dropped. `again_seconds`: see
        `_AGAIN_SECONDS`."""
        self._newest = newest
        self._max_row_tokens = max_row_tokens
        self._strategy = strategy
        self._again_seconds = again_seconds
        self._done = done
        self._dropped = dropped
        self._channel = channel
        self._stream = stream
        self._readers = readers
        self._mismatches_allowed = audit_mismatch_threshold
        self._strikes: Counter[str] = Counter()
        """Refusals in a row, by actor."""
        self._offer_again: dict[str, float] = {}
        """Actor -> when (`time.monotonic`)."""
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self._closing = False
        self._finishing = False
        self.gone = threading.Event()
        """Training is over, and every actor has said good-bye."""
        self.audit_mismatches = 0
        self.rejected: Counter[str] = Counter()
        """Trajectories that were not handed on, by cause."""
        self.weight_syncs = 0
        """Versions above 0 that an actor put into service."""
        self.weights_rejected = 0

    def counts(self) -> dict[str, int]:
        """For a checkpoint."""
        return {
            "audit_mismatches": self.audit_mismatches,
            "weight_syncs": self.weight_syncs,
            "weights_rejected": self.weights_rejected,
            **{f"rejected_{cause}": n for cause, n in self.rejected.items()},
        }

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on counting from a checkpoint."""
        self.audit_mismatches = counts.get("audit_mismatches", 0)
        self.weight_syncs = counts.get("weight_syncs", 0)
        self.weights_rejected = counts.get("weights_rejected", 0)
        for name, number in counts.items():
            if name.startswith("rejected_"):
                self.rejected[name.removeprefix("rejected_")] = number

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def finish(self) -> None:
        """Training is over: what still comes is not trained on, and good-byes are expected."""
        self._finishing = True

    def close(self, timeout: float = 3.0) -> None:
        """Stop reading. The channel is closed by its owner."""
        self._closing = True
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._closing:
                event = self._channel.receive(timeout=0.2)
                if event is not None:
                    self._handle(event)
                self._offer_due()
                if self._readers.failure is not None:
                    raise self._readers.failure
        except BaseException as error:  # the trainer must not wait for a thread that is dead
            self._stream.crash(error)
            self.gone.set()

    def _handle(self, event: Received) -> None:
        message, actor = event.message, event.actor
        if isinstance(message, TrajectoryMessage):
            self._trajectory(event, message.trajectory)
        elif isinstance(message, Skipped):
            self.rejected["lost_by_actor"] += 1
        elif isinstance(message, Hello):
            self._stream.note = ""
            self._forgive(actor)
            self._readers.joined(actor)
            if message.serving >= 0:
                self._readers.applied(actor, message.serving)
            say(f"actor {actor} (process {message.pid}) is here")
        elif isinstance(message, WeightsApplied):
            self._readers.applied(actor, message.version)
            self._forgive(actor)
            self.weight_syncs += message.version > 0
        elif isinstance(message, WeightsRejected):
            self._weights_rejected(actor, message)
        elif isinstance(message, Bye | PeerLost):
            self._gone(actor, message)

    def _trajectory(self, event: Received, trajectory: Trajectory) -> None:
        cause = "after_finish" if self._finishing else self._problem(trajectory)
        if cause is not None:
            self.rejected[cause] += 1
        elif self._stream.offer(trajectory, lambda: self._accept(event)):
            return
        self._dropped(trajectory, cause or ARRIVED_STALE)
        self._accept(event)

    def _accept(self, event: Received) -> None:
        self._done(event)
        self._channel.accept(event)

    def _problem(self, trajectory: Trajectory) -> str | None:
        """Why a trajectory cannot be trained on; counts and reports what should never be."""
        if len(trajectory.response) == 0:
            return "empty"
        if not np.isfinite(trajectory.logprobs).all():
            return "no_logprobs"
        try:
            mismatches = [str(one) for one in audit(trajectory)]
        except ValueError as error:
            mismatches = [str(error)]
        if not mismatches:
            return self._too_long(trajectory)
        self.audit_mismatches += 1
        say(f"audit: trajectory {trajectory.trajectory_id}: {mismatches[0]}")
        if self.audit_mismatches > self._mismatches_allowed:
            self._stream.fail(
                f"{self.audit_mismatches} trajectories contradict what the engine reported "
                f"(learner.audit_mismatch_threshold is {self._mismatches_allowed}); the last is "
                f"{trajectory.trajectory_id}: {mismatches[0]}"
            )
        return "audit"

    def _too_long(self, trajectory: Trajectory) -> str | None:
        passes = range(len(trajectory.passes))
        # Together they are no less than what any one of them depends on.
        if sum(trajectory.kv_length(k) for k in passes) <= self._max_row_tokens:
            return None
        if not self._max_row_tokens:
            return None
        needed = needed_tokens(trajectory, self._strategy)
        if needed <= self._max_row_tokens:
            return None
        if not self.rejected["too_long"]:
            say(
                f"too long: trajectory {trajectory.trajectory_id} needs a row of {needed} tokens, "
                f"and learner.training.max_row_tokens is {self._max_row_tokens}; such are dropped "
                "and counted (learner.json, rejected.too_long). Raise it, or lower "
                "actor.engine.max_model_len"
            )
        return "too_long"

    def _weights_rejected(self, actor: str, message: WeightsRejected) -> None:
        if not self._readers.holds(message.version):
            # Newer ones took its place while this actor was still at older ones: no fault of its.
            say(f"actor {actor} is too slow for weights {message.version}, and takes newer ones")
            self._offer_again[actor] = time.monotonic() + self._again_seconds
            return
        self._readers.rejected(actor, message.version)
        self.weights_rejected += 1
        self._strikes[actor] += 1
        strikes = self._strikes[actor]
        say(f"actor {actor} refused weights {message.version}: {message.reason}")
        if strikes < _STRIKES:
            self._offer_again[actor] = time.monotonic() + strikes * self._again_seconds
            return
        reason = (
            f"actor {actor} does not take the weights ({strikes} refusals in a row): version "
            f"{message.version} refused, serving {message.serving}: {message.reason}"
        )
        self._forgive(actor)
        if self._finishing:
            say(reason)  # it says good-bye with the weights that it has
        elif any(peer.actor != actor for peer in self._channel.peers()):
            say(reason)
            self._channel.refuse(actor, reason)
        else:
            self._stream.fail(reason)

    def _forgive(self, actor: str) -> None:
        self._strikes.pop(actor, None)
        self._offer_again.pop(actor, None)

    def _offer_due(self) -> None:
        """Offer the newest weights again to those who refused some a while ago."""
        now = time.monotonic()
        for actor in [actor for actor, due in self._offer_again.items() if now >= due]:
            del self._offer_again[actor]
            manifest = self._newest()
            if manifest is not None:
                self._readers.joined(actor)
                self._channel.send(actor, WeightsReady(manifest))

    def _gone(self, actor: str, message: Bye | PeerLost) -> None:
        self._readers.left(actor)
        self._forgive(actor)
        left = "said good-bye" if isinstance(message, Bye) else "is lost"
        say(f"actor {actor} {left}: {message.reason}")
        if any(peer.actor != actor for peer in self._channel.peers()):
            return
        if isinstance(message, PeerLost) and message.reason == "replaced":
            return
        # Another may join, or this one be started again: who waits for it has a deadline.
        self._stream.note = f"; the last actor ({actor}) {left}: {message.reason}"
        if self._finishing and isinstance(message, Bye):
            self.gone.set()
