"""One run of the learner: everything that it is made of, from the model to the good-bye.

Order matters: the socket is bound first, so that a busy port is known before a model is loaded
(an actor that is early waits, and is told of the first weights when they are there); and the weight
sender is kept until the last actor has gone, because it may still be reading.

A learner that finds a checkpoint in its run folder resumes from it: trainer, offsets and counters
come from the checkpoint, and what the journal has beyond it is given out again.

With several ranks this is rank 0; what it tells the others is in `group`, what they do in
`follower`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from dynatok_online.training.groups import task_key
from dynatok_online.trajectory import Trajectory
from learner.config import LearnerConfig
from learner.environment import compile_nothing, leave, local_ranks, report_to_one_run
from learner.log import say
from learner.online.adapters import check_separable, check_servable
from learner.online.before_step import BeforeStep
from learner.online.callbacks import DecideCallback
from learner.online.canary import canary, canary_texts
from learner.online.checkpoint import CheckpointCallback, StreamState, VersionFile
from learner.online.gap import Gap, GapProbe
from learner.online.gather import to_publish
from learner.online.group import Begin, Goodbye, Group, Score, ranks
from learner.online.inbox import Inbox
from learner.online.publisher import Publisher, shapes
from learner.online.report import Report
from learner.online.resume import ResumePoint, open_journal
from learner.online.scorer import Scorer
from learner.online.staleness import WAITED_STALE
from learner.online.steps import Dealer
from learner.online.stream import Batches, LearnerFailed, Stream
from learner.online.trainer import OnlineTrainer
from learner.saving import save_trained
from learner.step_log import StepLog, report_last
from learner.training import message_deadline, stream_arguments
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import find_endpoint, to_tell, write_endpoint
from protocol.run.exporter import open_exporter
from protocol.run.metrics import Metrics
from protocol.run.stop import asked_to_stop
from protocol.run.threads import number_of_threads
from protocol.run.trace import Traces, trace_of
from protocol.weights.transports import open_sender
from protocol.wire.messages import Finish, WeightManifest, WeightsReady


class Learner:
    """Built ready to train. `train` runs it, `stop` ends it early, `close` gives all back."""

    def __init__(self, config: LearnerConfig) -> None:
        if ranks() != config.ranks:
            raise ValueError(
                f"learner.ranks is {config.ranks}, but WORLD_SIZE says {ranks()} processes: leave "
                "it out, and start the learner by `dynatok learner`, which starts its ranks"
            )
        torch.set_num_threads(number_of_threads(1 + local_ranks(), given=config.threads))
        set_seed(config.seed)
        self.config = config
        self._run_dir = Path(config.run_dir)
        self._newest: WeightManifest | None = None
        self._save_asked = False
        self._batch: list[Trajectory] = []
        """What is being trained on."""
        self._closed = threading.Lock()
        self._opened: list[Any] = []
        try:
            self._build(config)
        except BaseException:
            self._close_opened()
            raise

    def _build(self, config: LearnerConfig) -> None:
        if config.deepspeed:
            compile_nothing()
        report_to_one_run(self._run_dir, config.run_id)
        arguments = stream_arguments(config, self._run_dir)
        metrics = Metrics(self._run_dir, "learner")
        self._opened.append(metrics)
        self.traces = Traces(self._run_dir, "learner")
        self._opened.append(self.traces)
        exporter = open_exporter(self._run_dir, config.run_id, "learner", config.prometheus_port)
        if exporter is not None:
            self._opened.append(exporter)
        self._resume = ResumePoint(self._run_dir, config.ranks)
        self._versions = VersionFile(self._run_dir)
        before = self._versions.read()
        self.stream = Stream(
            config.max_policy_lag,
            per_version=config.trajectories_per_step * config.publish_every,
            first_version=before + 1,
            group=task_key if "groups" in arguments.make_objective().needs else None,
            per_step=config.trajectories_per_step,
        )
        self.channel = self._open_channel(config)
        self.stream.flying = lambda: self.channel.flying
        self.batches = Batches(
            self.stream,
            config.trajectories_per_step,
            config.batch_deadline,
            self._on_batch,
            config.start_deadline,
        )
        self.trainer = OnlineTrainer(config, arguments)
        self.group = Group(message_deadline(config, arguments))
        keeps = arguments.save_strategy != "no"
        self.trainer.steps = Dealer(
            self.batches,
            self.group,
            self.trainer.data_collator,
            arguments.gradient_accumulation_steps,
            save_at_end=keeps,
        )
        base = self.trainer.model
        check_servable(base)
        if config.weight_sync == "adapter":
            check_separable(base)
        scorer = Scorer(
            lambda: self.trainer.model_wrapped, arguments.device, arguments.max_row_tokens
        )
        self.probe = GapProbe(
            scorer, config.logprob_gap_trajectories, lambda rows: self.group.tell(Score(rows))
        )
        texts = canary_texts(
            base.config.vocab_size, config.canary_texts, config.canary_tokens, config.seed
        )
        sent = to_publish(base, getattr(torch, config.weight_dtype), config.weight_sync)
        sender = open_sender(
            config.weight_transport,
            config.protocol,
            config.run_id,
            self._run_dir,
            shapes(sent.shapes),
            config.weight_full_every,
        )
        self._opened.append(sender)
        self.inbox = Inbox(
            self.channel,
            self.stream,
            sender,
            config.audit_mismatch_threshold,
            done=self._resume.progress.done,
            dropped=self._dropped,
            newest=lambda: self._newest,
            max_row_tokens=arguments.max_row_tokens,
            strategy=arguments.strategy,
        )
        self._opened.append(self.inbox)
        self.publisher = Publisher(
            sender=sender,
            canary=partial(canary, scorer, texts, config.canary_tolerance),
            gather=partial(self.trainer.published_weights, sent),
            trained=sent.trained,
            readers=self._connected,
            announce=self._announce,
            published=self._published,
            version=before,
            coming=self.channel.broadcast,
            adapter_rank=sent.adapter_rank,
        )
        self.stream.hint = self._why_no_batch
        self.stream.idle = self._obey_request
        state = self._resume.state
        self._deciding = DecideCallback(
            self.publisher,
            self.stream,
            config.publish_every,
            config.publish_deadline,
            config.max_seconds or math.inf,
            max_policy_lag=config.max_policy_lag,
            seconds_before=state.seconds,
            tell=self.group.tell,
            save_due=self._save_due,
            save_at_stop=keeps,
        )
        self.trainer.add_callback(self._deciding)
        self.trainer.add_callback(BeforeStep(self._compare, lambda: self.trainer.model_wrapped))
        self.report = Report(
            self._run_dir,
            metrics=metrics,
            exporter=exporter,
            channel=self.channel,
            stream=self.stream,
            batches=self.batches,
            inbox=self.inbox,
            publisher=self.publisher,
            probe=self.probe,
            timings=self.trainer.timings,
            step=state.step,
        )
        self.trainer.add_callback(
            StepLog(self.report.stages, self.report.write_step, self.report.reached)
        )
        self.trainer.add_callback(CheckpointCallback(self._state, self._saved, self.group.meet))
        report_last(self.trainer)
        if self._resume.path is not None:
            self.stream.restore(state.counts)
            self.inbox.restore(state.counts)
            self.probe.worst = None if state.worst_gap is None else Gap(*state.worst_gap)
        self.inbox.start()

    def _open_channel(self, config: LearnerConfig) -> LearnerChannel:
        """Bind the socket, with what is in the journal and the checkpoint has not consumed."""
        journal = self._journal = open_journal(config)
        self._opened.append(journal)
        replay = self._resume.replay(journal)
        if self._resume.path is not None or replay:
            step = self._resume.state.step
            self.traces.write("resumed", step=step)
            say(
                f"resuming from step {step}, with {len(replay)} trajectories that were stored"
                + (f"; {journal.missing} are no longer in the journal" if journal.missing else "")
            )
        for problem in journal.problems():
            say(problem)
        channel = LearnerChannel(
            config.protocol,
            config.run_id,
            store=journal,
            receipts=journal.receipts,
            replay=replay,
            room=self.stream.room,
            before=find_endpoint(self._run_dir, config.protocol.endpoint),
        )
        channel.start()
        self._opened.append(channel)
        address = to_tell(channel.endpoint, config.protocol.endpoint, config.protocol.interface)
        write_endpoint(self._run_dir, address)
        say(f"listening on {address}")
        return channel

    # ---- the run ----

    def train(self) -> None:
        """Train to the end, save the model, and see the actors off.

        Raises LearnerFailed with the reason where the run cannot continue.
        """
        checkpoint = self._resume.path
        left = checkpoint is None or self._resume.state.step < self.trainer.args.max_steps
        self.group.tell(Begin(str(checkpoint or ""), left))
        if checkpoint is None or left:
            self.trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        else:  # nothing is left to train, only to publish
            self.trainer.load(checkpoint)
            self.publisher.publish()
        self.stream.raise_failure()
        stopped = self.stream.stopped
        self.group.tell(Goodbye(finished=stopped is None))
        if stopped is not None:
            say(f"stopped by {stopped} after {self.report.step} steps")
            return
        self.report.finished = True
        self.report.write()  # before actors leave: none of them is missed then
        self.inbox.finish()
        self.channel.announce(Finish(self.publisher.version))
        say(f"training is over after {self.report.step} steps; saving, and waiting for the actors")
        if note := self.probe.note:
            say(note)
        save_trained(self.trainer, self._run_dir, first=True)
        self.report.write()
        self._see_off()

    def stop(self, reason: str) -> None:
        """End the run after the current step. Safe in a signal handler."""
        self.stream.stop(reason)

    def save(self) -> None:
        """Write a checkpoint after the current step. Safe in a signal handler."""
        self._save_asked = True

    def close(self, failure: str = "") -> None:
        """Write the summary and give everything back. May be called twice, from any thread."""
        if not self._closed.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            self.report.write(failure)
        self._close_opened()
        leave()

    def _close_opened(self) -> None:
        for one in reversed(self._opened):
            one.close()
        self._opened.clear()

    def _see_off(self) -> None:
        """Wait until every actor is gone: they still read weights, and evaluate."""
        end = time.monotonic() + self.config.finish_deadline
        while not self.inbox.gone.wait(0.2):
            if self.stream.stopped is not None:
                return
            if time.monotonic() > end:
                raise LearnerFailed(
                    f"no good-bye from the actors within {self.config.finish_deadline:g} s of the "
                    "last step; see their logs, or raise learner.finish_deadline" + self.stream.note
                )
        self.stream.raise_failure()

    # ---- what the parts call ----

    def _connected(self) -> Iterator[str]:
        for peer in self.channel.peers():
            yield peer.actor

    def _announce(self, manifest: WeightManifest) -> None:
        try:
            self.channel.announce(WeightsReady(manifest))
        except ValueError as error:
            raise LearnerFailed(f"weights {manifest.version}: {error}") from error
        self._newest = manifest

    def _why_no_batch(self) -> str:
        """What in the configuration may keep actors from sending enough for a step."""
        config = self.config
        actors = len(self.channel.peers())
        may_wait = actors * config.protocol.credits
        out = ""
        if actors and may_wait < config.trajectories_per_step:
            out = (
                f"; learner.trajectories_per_step ({config.trajectories_per_step}) is more than "
                f"the {may_wait} that protocol.credits ({config.protocol.credits}) allows "
                f"{actors} actors: raise protocol.credits"
            )
        refused = self.channel.refusals.last.get("no_room")
        return out if refused is None else f"{out}; no room for more: {refused}"

    def _save_due(self) -> bool:
        """Someone asks for a checkpoint; or the journal, which it lets delete what was trained
        on."""
        self._obey_request()
        consumed, _ = self._resume.progress.offsets()
        return self._save_asked or self._journal.wants_release(consumed)

    def _obey_request(self) -> None:
        """Stop where the run is asked to, by `RUN/stop.json`."""
        request = asked_to_stop(self._run_dir)
        if request is not None:
            self.stop(request.reason)

    def _published(self, version: int) -> None:
        self._versions.write(version)
        self.probe.published(version)
        if dropped := self.stream.advance(version):
            self.traces.write(
                "dropped", cause=WAITED_STALE, traces=[trace_of(one) for one in dropped]
            )

    def _dropped(self, trajectory: Trajectory, cause: str) -> None:
        self.traces.write("dropped", cause=cause, traces=[trace_of(trajectory)])

    def _state(self, step: int) -> StreamState:
        records, tasks = self._resume.progress.offsets()
        return StreamState(
            step=step,
            consumed=records,
            tasks=tasks,
            seconds=self._deciding.seconds,
            counts=self.stream.counts() | self.inbox.counts(),
            worst_gap=self.probe.worst and self.probe.worst[:4],
            ranks=self.config.ranks,
        )

    def _saved(self, state: StreamState) -> None:
        self._save_asked = False
        self.channel.checkpointed(state.consumed)
        say(f"checkpoint of step {state.step} is on disk")

    def _on_batch(self, batch: list[Trajectory]) -> None:
        step = self.trainer.state.global_step + 1
        self.traces.write("trained", step=step, traces=[trace_of(one) for one in batch])
        self._batch = batch

    def _compare(self) -> None:
        """Before the weights move: score what actors have sampled with them."""
        if not self.probe.due:
            return
        before = self.probe.seconds
        gap = self.probe.before_step([*self._batch, *self.stream.waiting()])
        if self.trainer.is_deepspeed_enabled:  # its engine steps inside what is timed as backward
            self.trainer.timings["forward_backward"] -= self.probe.seconds - before
        if gap is None:
            return
        self.report.write_gap(gap)
        if not gap.mean <= self.config.logprob_gap_threshold:
            raise LearnerFailed(
                f"logprob_gap of weights {gap.version} is {gap.mean:.3g} over {gap.tokens} "
                f"tokens, above learner.logprob_gap_threshold "
                f"({self.config.logprob_gap_threshold:g}): actor and learner do not compute "
                "the same thing"
            )
