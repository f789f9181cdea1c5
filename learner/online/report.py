"""The numbers of the learner: each step in the log, the run's metrics and Prometheus, and
`RUN/learner.json`, which sums the run up while it lasts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.log import say
from learner.online.gap import Gap, GapProbe
from learner.online.inbox import Inbox
from learner.online.publisher import Publisher
from learner.online.stream import Batches, Stream
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.exporter import Exporter
from protocol.run.json_files import write_json
from protocol.run.metrics import Metrics

_SUMMARY_SECONDS = 5.0


class Report:
    """Asks the parts of a learner what they have counted."""

    def __init__(
        self,
        run_dir: Path,
        *,
        metrics: Metrics,
        exporter: Exporter | None,
        channel: LearnerChannel,
        stream: Stream,
        batches: Batches,
        inbox: Inbox,
        publisher: Publisher,
        probe: GapProbe,
        timings: Mapping[str, float],
        step: int,
    ) -> None:
        """`timings`: seconds that the trainer has spent, by stage. `step`: where the run is."""
        self._path = run_dir / "learner.json"
        self._metrics = metrics
        self._exporter = exporter
        self._channel = channel
        self._stream = stream
        self._batches = batches
        self._inbox = inbox
        self._publisher = publisher
        self._probe = probe
        self._timings = timings
        self.step = step
        """The last optimizer step."""
        self.finished = False
        """Whether training has reached its end."""
        self._last: dict[str, float] = {}
        self._written_at = 0.0
        self._no_room = 0
        self._seconds = self._syncing = 0.0
        self._counted: float | None = None
        """Seconds of the steps that `idle_share` is of; None: the first is not over."""
        self._waited = 0.0

    def stages(self) -> dict[str, float]:
        """Seconds that each stage has taken so far."""
        return {
            "wait_for_batch": self._batches.waited,
            "plan": self._timings["plan"],
            "forward_backward": self._timings["forward_backward"],
            "publish": self._publisher.seconds,
            "compare": self._probe.seconds,
        }

    def write_gap(self, gap: Gap) -> None:
        """One comparison of log-probabilities."""
        self._metrics.log(
            gap.version,
            logprob_gap=gap.mean,
            logprob_gap_largest=gap.largest,
            logprob_gap_tokens=gap.tokens,
            trainer_actor_kl=gap.kl,
        )

    def write_step(self, step: int, numbers: dict[str, float]) -> dict[str, float]:
        """One optimizer step, with the numbers that the trainer logged and `seconds_STAGE`.

        Returns all that is told of it."""
        self._last = numbers
        counts = self._stream.counts()
        serving = self._actor_version()
        self._seconds += numbers["seconds_step"]
        self._syncing += numbers["seconds_publish"] + numbers["seconds_compare"]
        if self._counted is None:  # the first one waits until actors have begun
            self._counted = 0.0
        else:
            self._counted += numbers["seconds_step"]
            self._waited += numbers["seconds_wait_for_batch"]
        every = {
            **numbers,
            **counts,
            "version": self._publisher.version,
            "actor_version": serving,
            "audit_mismatches": self._inbox.audit_mismatches,
            "publish_postponed": self._publisher.postponed,
            "sync_share": self.sync_share,
            "idle_share": self.idle_share,
            "weights_changed": self._publisher.changed,
        }
        self._metrics.log(step, **every)
        if self._exporter is not None:
            self._exporter.set({"step": step, **every})
        refusals = self._channel.refusals
        refused = refusals.counts.get("no_room", 0)
        if refused > self._no_room:
            self._no_room = refused
            say(f"trajectories wait at the actors: {refusals.last['no_room']}")
        say(
            f"step {step}: loss {numbers['loss']:.4f}, weights {self._publisher.version} "
            f"(actor {serving}), {counts['waiting']} waiting, "
            f"{counts['dropped_stale']} stale; {numbers['seconds_step']:.2f} s, of which waited "
            f"{numbers['seconds_wait_for_batch']:.2f}"
        )
        if time.monotonic() - self._written_at > _SUMMARY_SECONDS:
            self.write()
        return every

    @property
    def idle_share(self) -> float:
        """Share of the steps' time that was spent waiting for trajectories, since the first step
        of this process."""
        return self._waited / self._counted if self._counted else 0.0

    @property
    def sync_share(self) -> float:
        """Share of the steps' time that publishing, canary and gap took, since this process began
        to train."""
        return self._syncing / self._seconds if self._seconds else 0.0

    def reached(self, step: int) -> None:
        """An optimizer step was made, whether it is logged or not."""
        self.step = step

    def _actor_version(self) -> int:
        """The oldest version that an actor samples with which is connected; -1: none does."""
        serving = (peer.serving for peer in self._channel.peers())
        return min((version for version in serving if version >= 0), default=-1)

    def write(self, failure: str = "") -> None:
        """Write the summary. A full disk keeps the one before."""
        self._written_at = time.monotonic()
        with contextlib.suppress(OSError):
            write_json(self._path, self.summary(failure))

    def summary(self, failure: str = "") -> dict[str, Any]:
        """What goes into `learner.json`."""
        counts = self._stream.counts()
        worst = self._probe.worst
        return {
            "learner_steps": self.step,
            "weight_syncs": self._inbox.weight_syncs,
            "weights_published": self._publisher.version,
            "weights_rejected": self._inbox.weights_rejected,
            "publish_postponed": self._publisher.postponed,
            "trajectories": counts["taken"],
            "received": counts["received"] + sum(self._inbox.rejected.values()),
            "audit_mismatches": self._inbox.audit_mismatches,
            "logprob_gap": None if worst is None else worst.mean,
            "logprob_gap_version": None if worst is None else worst.version,
            "logprob_gap_compared": self._probe.compared,
            "logprob_gap_missed": self._probe.missed,
            "sync_share": self.sync_share,
            "idle_share": self.idle_share,
            "peak_memory_mb": self._last.get("peak_memory_mb"),
            "weights_changed": self._publisher.changed,
            "policy_lag_max": counts["policy_lag_max"],
            "dropped_stale": counts["dropped_stale"],
            "rejected": dict(self._inbox.rejected),
            "refused_messages": dict(self._channel.refusals.counts),
            "loss": self._last.get("loss"),
            "finished": self.finished,
            "failure": failure or None,
        }
