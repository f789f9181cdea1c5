"""The numbers of one actor: in its summary `RUN/NAME.json`, the run's metrics, and Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from actor.config import ActorConfig
from actor.log import say
from actor.online.collector import Collector
from actor.sessions.serving import Serving
from dynatok_online.adherence.summary import said
from dynatok_online.data.storage import write_trajectories
from dynatok_online.memory import peak_memory
from dynatok_online.trajectory import Trajectory
from protocol.delivery.actor_channel import ActorChannel
from protocol.run.exporter import open_exporter
from protocol.run.json_files import read_json, write_json
from protocol.run.metrics import Metrics
from protocol.wire.messages import WeightsApplied, WeightsRejected

LOOPS = 0.1
"""Rise of repetition since the first evaluation that people are told of."""


class Report:
    """Is told of weights and evaluations; asks the collector for everything else."""

    def __init__(
        self, config: ActorConfig, collector: Collector, serving: Serving, channel: ActorChannel
    ) -> None:
        """Raises ValueError where the port for Prometheus is taken."""
        run_dir = Path(config.run_dir)
        self._every = config.report_every
        self._sessions = config.sessions
        self._collector = collector
        self._serving = serving
        self._channel = channel
        self._evaluations = run_dir / "evaluation"
        self._summary = run_dir / f"{config.name}.json"
        self._before = read_json(self._summary)
        self._metrics = Metrics(config.run_dir, config.name)
        self._exporter = open_exporter(run_dir, config.run_id, config.name, config.prometheus_port)
        self._syncs = 0
        self._seconds_paused = 0.0
        self._rejected = 0

    def close(self) -> None:
        """Give back files and the port."""
        self._metrics.close()
        if self._exporter is not None:
            self._exporter.close()

    def weights(self, answer: WeightsApplied | WeightsRejected) -> None:
        """What became of a weight version."""
        if isinstance(answer, WeightsRejected):
            self._rejected += 1
            say(f"weights {answer.version} rejected, serving {answer.serving}: {answer.reason}")
            return
        self._syncs += answer.version > 0
        self._seconds_paused += answer.pause_seconds
        self._metrics.log(
            answer.version,
            weight_version=answer.version,
            pause_seconds=answer.pause_seconds,
            fetch_seconds=answer.fetch_seconds,
            canary_gap=answer.canary_gap,
            restarted_passes=answer.restarted_passes,
        )

    def evaluation(self, name: str, summary: dict[str, Any], written: Sequence[Trajectory]) -> None:
        """What an evaluation of the weights that serve has found (see `evaluation`), and in what:
        the responses stand in a file beside the numbers."""
        version = self._serving.version
        # Their numbers last: whoever sees them finds the texts.
        write_trajectories(self._evaluations / f"{name}.parquet", written)
        write_json(self._evaluations / f"{name}.json", {"version": version, **summary})
        after, static = (
            said(summary[f"adherence_{kind}"], summary[f"adherence_{kind}_half"])
            for kind in ("after_edit", "static")
        )
        say(
            f"evaluation {name}: adherence after edit {after} ({summary['edits_judged']} edits), "
            f"static {static}, repetition {_number(summary['repetition']):.3f}"
        )
        self._warn_of_loops(name, summary["repetition"])
        self._metrics.log(
            version,
            evaluation_adherence_after_edit=_number(summary["adherence_after_edit"]),
            evaluation_adherence_after_edit_half=_number(summary["adherence_after_edit_half"]),
            evaluation_edits_judged=summary["edits_judged"],
            evaluation_adherence_static=_number(summary["adherence_static"]),
            evaluation_adherence_static_half=_number(summary["adherence_static_half"]),
            evaluation_passes_static=summary["passes_static"],
            evaluation_repetition=_number(summary["repetition"]),
            evaluation_seconds=summary["seconds"],
        )

    def _warn_of_loops(self, name: str, repeated: float | None) -> None:
        """Adherence can be had by collapsing: say so where texts repeat themselves as never before
        the training."""
        before = read_json(self._evaluations / "before.json").get("repetition")
        if before is not None and repeated is not None and repeated > before + LOOPS:
            say(
                f"evaluation {name}: the responses repeat themselves ({repeated:.2f} of their runs "
                f"of four words stood before; {before:.2f} at the start). Read them: dynatok "
                f"inspect {self._evaluations / f'{name}.parquet'}. A lower learner.training."
                "learning_rate and actor.sampling.temperature 1 keep a model from collapsing"
            )

    async def write_often(self) -> None:
        """Write every `report_every` seconds until cancelled; say when the actor pauses."""
        tokens, at = 0, time.monotonic()
        paused: str | None = None
        lost = 0
        while True:
            await asyncio.sleep(self._every)
            if self._lost_batches() > lost:
                lost = self._lost_batches()
                say(f"{lost} batches of vLLM's cache events lost: responses in flight are dropped")
            if self._channel.paused != paused:
                paused = self._channel.paused
                say("there is room again" if paused is None else f"pausing: {paused}")
            now, generated = time.monotonic(), self._collector.counts.generated_tokens
            self.write(tokens_per_second=(generated - tokens) / (now - at))
            tokens, at = generated, now

    def write(self, **numbers: float) -> None:
        """Write the summary, and log its numbers and these."""
        summary = self.summary()
        write_json(self._summary, summary, optional=True)
        plain = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        numbers["free_credits"] = self._channel.free_credits
        self._metrics.log(None, **plain, **numbers)
        if self._exporter is not None:
            self._exporter.set(plain | numbers)

    def _lost_batches(self) -> int:
        log = self._serving.engine.cache_log
        return 0 if log is None else log.lost_batches

    def summary(self) -> dict[str, Any]:
        """The numbers of the run so far."""
        collector = self._collector
        counts, adherence = collector.counts, collector.adherence
        now: dict[str, Any] = {
            "trajectories": collector.trajectories,
            "edits": counts.edits,
            "passes": counts.passes,
            "empty_passes": counts.empty_passes,
            "generated_tokens": counts.generated_tokens,
            "computed_tokens": counts.computed_tokens,
            "reused_tokens": counts.reused_tokens,
            "audit_mismatches": counts.audit_mismatches,
            "problems": collector.problems,
            "seconds_wait_for_credit": collector.seconds_waiting,
            "seconds_generate": collector.seconds_generating,
            "seconds_weights": self._seconds_paused,
            "weight_syncs": self._syncs,
            "weights_rejected": self._rejected,
            "lost_cache_batches": self._lost_batches(),
            "dropped": dict(collector.dropped),
            "refused_messages": dict(self._channel.refusals.counts),
        }
        # What a process of this name counted before it was killed stays counted.
        total = _added(self._before, now)
        return (
            total
            | self._shares(total)
            | {
                "weight_version": self._serving.version,
                "adherence": adherence["mean"],
                "adherence_half": adherence["half"],
                "adherence_edits": adherence["count"],
                "paused": self._channel.paused,
                "peak_memory_mb": max(self._before.get("peak_memory_mb", 0.0), _peak_memory_mb()),
            }
        )

    def _shares(self, total: dict[str, Any]) -> dict[str, float]:
        """Of the time spent collecting: what sessions waited for leave to start (`idle_share`),
        and what the engine was paused for new weights (`paused_share`)."""
        waited = total["seconds_wait_for_credit"]
        seconds = waited + total["seconds_generate"]
        if not seconds:
            return {"idle_share": 0.0, "paused_share": 0.0}
        paused = total["seconds_weights"] * self._sessions
        return {"idle_share": waited / seconds, "paused_share": paused / seconds}


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Numbers are added up, lists put together, and so on inside."""
    out = before | now
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        out[name] = _added(old, new) if isinstance(new, dict) else old + new
    return out


def _peak_memory_mb() -> float:
    """Of this process and of all that it has started, such as the engine."""
    own = psutil.Process()
    pids = [own.pid, *(child.pid for child in own.children(recursive=True))]
    return sum(map(peak_memory, pids)) / 2**20


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
