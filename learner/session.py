"""One run of the learner: everything that it is made of, from the model to the good-bye.

Order matters: the socket is bound first, so that a busy port is known before a model is loaded
(an actor that is early waits, and is told of the first weights when they are there); and the ring
is kept until the last actor has gone, because it may still be reading.

A session that finds a checkpoint in its run folder goes on from there: trainer, offsets and
counters come from the checkpoint, and what the journal holds beyond it is given out again.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, set_seed

from dynatok_online import tiny
from dynatok_online.metrics import Metrics
from dynatok_online.trainer import DynamicSFTTrainer
from dynatok_online.trajectory import Trajectory
from learner.callbacks import PublishCallback, StepLog
from learner.canary import canary_texts
from learner.checkpoint import (
    CheckpointCallback,
    Progress,
    StreamState,
    VersionFile,
    latest,
)
from learner.config import LearnerConfig
from learner.gap import Gap, GapProbe
from learner.gather import gather_weights
from learner.inbox import Inbox
from learner.publisher import Publisher, Weights, shapes
from learner.shadow import Shadow
from learner.staleness import WAITED_STALE
from learner.stream import Batches, LearnerFailed, Stream
from learner.training import CHECKPOINTS, lora_arguments, training_arguments
from protocol.durable import JournaledInbox
from protocol.exporter import open_exporter
from protocol.learner_channel import LearnerChannel
from protocol.messages import Finish, WeightManifest, WeightsReady
from protocol.trace import Traces, trace_of
from protocol.transports import open_sender

_SUMMARY_SECONDS = 5.0


class OnlineTrainer(DynamicSFTTrainer):
    """Takes its batches from the stream as they are: nothing is prefetched or dealt out."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """accelerate's loader would read one batch ahead: an older policy, and one too many."""
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )

    def load(self, checkpoint: Path) -> None:
        """Take a checkpoint's weights over, adapters included, without training on."""
        self._load_from_checkpoint(str(checkpoint))


class Session:
    """Built ready to train. `train` runs it, `stop` ends it early, `close` gives all back."""

    def __init__(self, config: LearnerConfig) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) != 1:
            raise ValueError("the online learner runs as one process; start it with WORLD_SIZE=1")
        torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 2) // 2))
        set_seed(config.seed)
        self.config = config
        self._run_dir = Path(config.run_dir)
        self._closed = threading.Lock()
        self._opened: list[Any] = []
        self._summary_at = 0.0
        self._last: dict[str, float] = {}
        self._steps = 0
        self._comparing = 0.0
        self._no_room = 0
        self._finished = False
        try:
            self._build(config)
        except BaseException:
            self._close_opened()
            raise

    def _build(self, config: LearnerConfig) -> None:
        if config.deepspeed:
            _compile_nothing()
        arguments = training_arguments(config)
        model = tiny.resolve(config.model)
        self.metrics = Metrics(self._run_dir, "learner")
        self._opened.append(self.metrics)
        self.traces = Traces(self._run_dir, "learner")
        self._opened.append(self.traces)
        self._exporter = open_exporter(
            self._run_dir, config.run_id, "learner", config.prometheus_port
        )
        if self._exporter is not None:
            self._opened.append(self._exporter)
        self._checkpoint = latest(self._run_dir / CHECKPOINTS)
        self._versions = VersionFile(self._run_dir)
        before = self._versions.read()
        self.stream = Stream(
            config.max_policy_lag,
            per_version=config.trajectories_per_step * config.publish_every,
            first_version=before + 1,
        )
        self.channel = self._open_channel(config)
        self.batches = Batches(
            self.stream, config.trajectories_per_step, config.batch_deadline, self._on_batch
        )
        self.trainer = OnlineTrainer(model, arguments, self.batches, **lora_arguments(config.lora))
        self.trainer.remove_callback(PrinterCallback)
        base = self.trainer.model
        shadow = Shadow(base)
        self.probe = GapProbe(
            shadow, config.logprob_gap_trajectories, keep=config.max_policy_lag + 1
        )
        dtype = getattr(torch, config.weight_dtype)

        def gather() -> Weights:
            return gather_weights(base, dtype)

        ring = open_sender(
            config.weight_transport,
            config.protocol,
            config.run_id,
            self._run_dir,
            shapes(gather()),
            config.weight_full_every,
        )
        self._opened.append(ring)
        self.inbox = Inbox(
            self.channel,
            self.stream,
            ring,
            config.audit_mismatch_threshold,
            done=self._progress.done,
            dropped=self._dropped,
        )
        self._opened.append(self.inbox)
        self.publisher = Publisher(
            ring=ring,
            shadow=shadow,
            texts=canary_texts(
                base.config.vocab_size, config.canary_texts, config.canary_tokens, config.seed
            ),
            tolerance=config.canary_tolerance,
            gather=gather,
            readers=lambda: [peer.actor for peer in self.channel.peers()],
            announce=self._announce,
            published=self._published,
            version=before,
            coming=self.channel.broadcast,
        )
        state = None if self._checkpoint is None else self._checkpoint.state
        self._publishing = PublishCallback(
            self.publisher,
            self.stream,
            config.publish_every,
            config.publish_deadline,
            config.max_seconds or math.inf,
            max_policy_lag=config.max_policy_lag,
            seconds_before=0.0 if state is None else state.seconds,
        )
        self.trainer.add_callback(self._publishing)
        self.trainer.add_callback(StepLog(self._stages, self._write_step))
        self.trainer.add_callback(CheckpointCallback(self._state, self._saved))
        if state is not None:
            self.stream.restore(state.counts)
            self.inbox.restore(state.counts)
            self.probe.worst = None if state.worst_gap is None else Gap(*state.worst_gap)
        self.inbox.start()

    def _open_channel(self, config: LearnerConfig) -> LearnerChannel:
        """Bind the socket, with what the journal holds and the checkpoint has not consumed."""
        store = JournaledInbox(
            self._run_dir / "journal" / "learner",
            config.run_id,
            max_bytes=config.journal_bytes,
            max_message_bytes=config.protocol.max_message_bytes,
        )
        self._opened.append(store)
        state = None if self._checkpoint is None else self._checkpoint.state
        self._progress = Progress(state)
        replay = list(store.replay(self._progress.consumed))
        if state is not None:
            self._steps = state.step
            for actor, tasks in state.tasks.items():
                store.inbox.tasks_of(actor).add_all(tasks)
        if state is not None or replay:
            self.traces.write("resumed", step=self._steps)
            _say(
                f"going on from step {self._steps}, with {len(replay)} trajectories that were held"
                + (f"; {store.missing} are no longer in the journal" if store.missing else "")
            )
        channel = LearnerChannel(
            config.protocol,
            config.run_id,
            store=store,
            inbox=store.inbox,
            replay=replay,
            room=self.stream.room,
        )
        channel.start()
        self._opened.append(channel)
        _say(f"listening on {channel.endpoint}")
        return channel

    # ---- the run ----

    def train(self) -> None:
        """Train to the end, save the model, and see the actors off.

        Raises LearnerFailed with the reason where the run cannot go on.
        """
        checkpoint = self._checkpoint
        if checkpoint is None or checkpoint.state.step < self.trainer.args.max_steps:
            self.trainer.train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path)
            )
        else:  # nothing is left to train, only to publish
            self.trainer.load(checkpoint.path)
            self.publisher.publish(self.config.publish_deadline)
        self._raise_failure()
        if self.stream.stopped is not None:
            _say(f"stopped by {self.stream.stopped} after {self._steps} steps")
            return
        self._finished = True
        self.inbox.finish()
        self.channel.announce(Finish(self.publisher.version))
        _say(f"training is over after {self._steps} steps; saving, and waiting for the actors")
        self.trainer.save_model(str(self._run_dir / "model"))
        self._write_summary()
        self._see_off()

    def stop(self, reason: str) -> None:
        """End the run after the step that is under way. Safe in a signal handler."""
        self.stream.stop(reason)

    def close(self, failure: str = "") -> None:
        """Write the summary and give everything back. May be called twice, from any thread."""
        if not self._closed.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            self._write_summary(failure)
        self._close_opened()
        if torch.distributed.is_initialized():
            with contextlib.suppress(Exception):
                torch.distributed.destroy_process_group()

    def _close_opened(self) -> None:
        for one in reversed(self._opened):
            one.close()
        self._opened.clear()

    def _see_off(self) -> None:
        """Wait until every actor is gone: they still read the ring, and evaluate."""
        end = time.monotonic() + self.config.finish_deadline
        while not self.inbox.gone.wait(0.2):
            if self.stream.stopped is not None:
                return
            if time.monotonic() > end:
                raise LearnerFailed(
                    f"no good-bye from the actors within {self.config.finish_deadline:g} s of the "
                    "last step; see their logs, or raise learner.finish_deadline" + self.stream.note
                )
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self.stream.failure is not None:
            raise LearnerFailed(self.stream.failure)

    # ---- what the parts call ----

    def _announce(self, manifest: WeightManifest) -> None:
        self.channel.announce(WeightsReady(manifest))

    def _published(self, version: int, weights: Weights) -> None:
        self._versions.write(version)
        self.probe.published(version, weights)
        if dropped := self.stream.advance(version):
            self.traces.write(
                "dropped", cause=WAITED_STALE, traces=[trace_of(one) for one in dropped]
            )

    def _dropped(self, trajectory: Trajectory, cause: str) -> None:
        self.traces.write("dropped", cause=cause, traces=[trace_of(trajectory)])

    def _state(self, step: int) -> StreamState:
        records, tasks = self._progress.offsets()
        return StreamState(
            step=step,
            consumed=records,
            tasks=tasks,
            seconds=self._publishing.seconds,
            counts=self.stream.counts() | self.inbox.counts(),
            worst_gap=self.probe.worst,
        )

    def _saved(self, state: StreamState) -> None:
        self.channel.checkpointed(state.consumed)
        _say(f"checkpoint of step {state.step} is on disk")

    def _on_batch(self, batch: list[Trajectory]) -> None:
        step = self.trainer.state.global_step + 1
        self.traces.write("trained", step=step, traces=[trace_of(one) for one in batch])
        began = time.perf_counter()
        gaps = self.probe.observe(batch)
        self._comparing += time.perf_counter() - began
        for gap in gaps:
            self.metrics.log(
                gap.version,
                logprob_gap=gap.mean,
                logprob_gap_largest=gap.largest,
                logprob_gap_tokens=gap.tokens,
            )
            if not gap.mean <= self.config.logprob_gap_threshold:
                raise LearnerFailed(
                    f"logprob_gap of weights {gap.version} is {gap.mean:.3g} over {gap.tokens} "
                    f"tokens, above learner.logprob_gap_threshold "
                    f"({self.config.logprob_gap_threshold:g}): actor and learner do not compute "
                    "the same thing"
                )

    def _stages(self) -> dict[str, float]:
        timings = self.trainer.timings
        return {
            "wait_for_batch": self.batches.waited,
            "plan": timings["plan"],
            "forward_backward": timings["forward_backward"],
            "publish": self.publisher.seconds,
            "compare": self._comparing,
        }

    def _write_step(self, step: int, numbers: dict[str, float]) -> None:
        self._steps, self._last = step, numbers
        counts = self.stream.counts()
        applied = [one.version for one in self.inbox.applied.values()]
        every = {
            **numbers,
            **counts,
            "version": self.publisher.version,
            "actor_version": min(applied, default=-1),
            "audit_mismatches": self.inbox.audit_mismatches,
            "publish_postponed": self.publisher.postponed,
        }
        self.metrics.log(step, **every)
        if self._exporter is not None:
            self._exporter.set({"step": step, **every})
        refused = self.channel.refusals.counts.get("no_room", 0)
        if refused > self._no_room:
            self._no_room = refused
            _say(f"trajectories wait at the actors: {self.channel.refusals.last['no_room']}")
        _say(
            f"step {step}: loss {numbers['loss']:.4f}, weights {self.publisher.version} "
            f"(actor {min(applied, default=-1)}), {counts['waiting']} waiting, "
            f"{counts['dropped_stale']} stale; {numbers['seconds_step']:.2f} s, of which waited "
            f"{numbers['seconds_wait_for_batch']:.2f}"
        )
        if time.monotonic() - self._summary_at > _SUMMARY_SECONDS:
            self._write_summary()

    # ---- the summary ----

    def summary(self, failure: str = "") -> dict[str, Any]:
        """What goes into `learner.json`."""
        counts = self.stream.counts()
        worst = self.probe.worst
        return {
            "learner_steps": self._steps,
            "weight_syncs": self.inbox.weight_syncs,
            "weights_published": self.publisher.version,
            "weights_rejected": self.inbox.weights_rejected,
            "publish_postponed": self.publisher.postponed,
            "trajectories": counts["taken"],
            "received": counts["received"] + sum(self.inbox.rejected.values()),
            "audit_mismatches": self.inbox.audit_mismatches,
            "logprob_gap": None if worst is None else worst.mean,
            "logprob_gap_version": None if worst is None else worst.version,
            "logprob_gap_compared": self.probe.compared,
            "logprob_gap_missed": self.probe.missed,
            "policy_lag_max": counts["policy_lag_max"],
            "dropped_stale": counts["dropped_stale"],
            "rejected": dict(self.inbox.rejected),
            "refused_messages": dict(self.channel.refusals.counts),
            "loss": self._last.get("loss"),
            "finished": self._finished,
            "failure": failure or None,
        }

    def _write_summary(self, failure: str = "") -> None:
        self._summary_at = time.monotonic()
        target = self._run_dir / "learner.json"
        temporary = target.with_suffix(".json.new")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self.summary(failure))))
        temporary.replace(target)


def _compile_nothing() -> None:
    """On a CPU DeepSpeed would compile an operator for reductions between ranks of one machine.

    One rank has no use for it. Compiling takes half a minute and a compiler, and a process that
    is killed while it compiles leaves a lock behind that later ones wait for without end.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _say(text: str) -> None:
    import sys

    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
