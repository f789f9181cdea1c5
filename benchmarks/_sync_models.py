"""What publishing a model takes of learner and actor: memory, bytes and time, beside a step.

The learner is a process of its own with the real publisher: the canary's forward, tensors gathered,
merged and written one by one, the comparison with the version before. The actor is another one:
it fetches, verifies and copies into buffers of its own, as an engine does; only that is a pause.
Memory is the high-water mark of each process beyond what it held before, shared pages included.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from protocol.config import ProtocolConfig
from protocol.weights.transports import FollowingReceiver, open_sender
from protocol.wire.messages import WeightManifest, WeightsComing, WeightsReady

EVERY = 4
"""Steps between two versions, for the share of the steps."""
RANDOM_1B = "random-1b"
"""A Llama of 1.1 billion random parameters."""
WAYS = ("whole", "lora", "adapter")
_TRAJECTORIES = 8
TEXT = (
    "# What publishing weights takes\n\n"
    "`dynatok bench sync --models MODEL ... --page docs/benchmarks/sync.md` ({machine}). The "
    "learner is a process with the real publisher over `shm`: the canary's forward with the model "
    "in training, tensors gathered one by one, adapters merged layer by layer, the comparison "
    "with the version before. The actor is another process that fetches, verifies, and copies "
    "into a model of its own; only the copy pauses generation. Medians over the versions. *MB "
    "more* is the high-water mark of a process beyond what it held with its model at rest; the "
    "learner's includes the weight ring in shared memory. *Scoring* is the comparison of the last "
    "pass of a trajectory with the model in training (the log-probability gap). `lora` are "
    "adapters of rank 16 on every linear layer, merged into the weights; `adapter` the same ones, "
    "sent alone: what vLLM then takes to load them is not in *paused* (milliseconds, see "
    "docs/models.md). *Share of the steps* is "
    "publishing and scoring in the time of four steps (`publish_every: 4`) of eight trajectories "
    "of 48 tokens under three states: forward, backward and AdamW.\n\n"
    "With a second float32 model and the weight sets that were kept for the comparison, as it was "
    "before, the learner took 5,129 MB more for SmolLM2 (one run).\n"
)


class ModelRow(msgspec.Struct):
    """One model published one way: medians over versions."""

    model: str
    way: str
    """`whole`: all of it is trained. `lora`: adapters of rank 16 on every linear layer, merged.
    `adapter`: the same, and they travel alone."""
    dtype: str
    megabytes: float
    """Of one version on its way."""
    learner_mb: float
    actor_mb: float
    seconds: float
    """From `publish` to applied."""
    publish_seconds: float
    """Canary, gathering, merging, comparing and writing; the learner trains nothing meanwhile."""
    pause_seconds: float
    gap_seconds: float
    """Scoring the last pass of a trajectory with the model in training."""
    step_seconds: float
    """Forward and backward of eight trajectories, and AdamW."""

    @property
    def share(self) -> float:
        """Of the time of the steps between two versions."""
        syncing = self.publish_seconds + self.gap_seconds
        return syncing / (syncing + EVERY * self.step_seconds)


def measure(model: str, way: str, dtype: str, repeats: int) -> ModelRow:
    """In processes that nothing else has made larger."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    learner = context.Process(target=_learner, args=(model, way, dtype, repeats, there))
    learner.start()
    there.close()
    try:
        return msgspec.json.decode(here.recv(), type=ModelRow)
    except EOFError:
        raise RuntimeError(f"the process that published {model} ({way}) has died") from None
    finally:
        learner.join(10)
        learner.kill()


def table(rows: Sequence[ModelRow]) -> list[str]:
    """Lines of Markdown."""
    return [
        "| model | trained | dtype | MB of a version | learner, MB more | actor, MB more "
        "| publish to applied, s | learner waits, s | paused, s | scoring, s | share of steps |",
        "|" + "---|" * 11,
        *(
            f"| {one.model} | {one.way} | {one.dtype} | {one.megabytes:,.0f} "
            f"| {one.learner_mb:,.0f} | {one.actor_mb:,.0f} | {one.seconds:.2f} "
            f"| {one.publish_seconds:.2f} | {one.pause_seconds:.2f} | {one.gap_seconds:.2f} "
            f"| {one.share:.1%} |"
            for one in rows
        ),
    ]


def write_page(path: Path, rows: Sequence[ModelRow], machine: str) -> None:
    """The page of these figures; rows of it that were not measured now are kept."""
    lines = table(rows)
    mine = {tuple(line.split("|")[1:4]) for line in lines[2:]}
    kept = [
        line
        for line in (path.read_text().splitlines() if path.exists() else [])
        if line.startswith("| ") and not line.startswith("| model |")
        if tuple(line.split("|")[1:4]) not in mine
    ]
    path.write_text("\n".join([TEXT.format(machine=machine), *lines[:2], *kept, *lines[2:], ""]))


def _learner(name: str, way: str, dtype: str, repeats: int, answer: Connection) -> None:
    import torch

    from learner.config import LearnerConfig
    from learner.online.canary import canary, canary_texts
    from learner.online.gap import GapProbe
    from learner.online.gather import to_publish
    from learner.online.publisher import Publisher, shapes
    from learner.online.scorer import Scorer

    model = _model(name, way, getattr(torch, dtype))
    step = _step_seconds(model)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    run_id = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        actor = context.Process(
            target=_actor, args=(run_id, Path(folder), dtype, there), daemon=True
        )
        actor.start()
        scorer = Scorer(lambda: model, torch.device("cpu"))
        resting = _forget_peak()
        sync = "adapter" if way == "adapter" else "merged"
        sent = to_publish(model, getattr(torch, dtype), sync)
        sender = open_sender("shm", ProtocolConfig(), run_id, Path(folder), shapes(sent.shapes))
        texts = canary_texts(model.config.vocab_size, 2, 24, seed=0)
        announced: list[WeightManifest] = []
        publisher = Publisher(
            sender=sender,
            canary=lambda: canary(scorer, texts, 1e-3),
            gather=sent.stream,
            trained=sent.trained,
            readers=lambda: ["actor"],
            announce=announced.append,
            published=lambda version: None,
            coming=lambda coming: here.send(msgspec.msgpack.encode(coming)),
            adapter_rank=sent.adapter_rank,
        )
        probe = GapProbe(scorer, LearnerConfig().logprob_gap_trajectories)
        rows = []
        try:
            for version in range(repeats + 1):
                _move(model)
                start = time.perf_counter()
                publisher.publish()
                published = time.perf_counter()
                here.send(msgspec.msgpack.encode(WeightsReady(announced[-1])))
                pause = here.recv()
                end = time.perf_counter()
                sender.applied("actor", version)
                probe.published(version)
                probe.before_step(_trajectories(model.config.vocab_size, version)[:2])
                if version:  # the first one touches every page for the first time
                    rows.append((end - start, published - start, pause))
            here.send(None)
            peak = _peak_mb()
            actor_mb = here.recv()
        finally:
            sender.close()
    seconds, publish, pause = (statistics.median(column) for column in zip(*rows, strict=True))
    row = ModelRow(
        model=name,
        way=way,
        dtype=dtype,
        megabytes=announced[-1].nbytes / 1e6,
        learner_mb=max(peak - resting, 0.0),
        actor_mb=actor_mb,
        seconds=seconds,
        publish_seconds=publish,
        pause_seconds=pause,
        gap_seconds=probe.seconds / (repeats + 1),
        step_seconds=step,
    )
    answer.send(msgspec.json.encode(row))


def _actor(run_id: str, folder: Path, dtype: str, pipe: Connection) -> None:
    """Fetches, verifies, copies; its memory beyond its own copy of the model."""
    import torch

    receiver = FollowingReceiver(ProtocolConfig(), run_id, folder)
    model: dict[str, torch.Tensor] = {}
    resting = 0.0
    while (message := pipe.recv()) is not None:
        news = msgspec.msgpack.decode(message, type=WeightsComing | WeightsReady)
        if isinstance(news, WeightsComing):
            receiver.expect(news)
            continue
        if not model:
            for spec in news.manifest.tensors:
                model[spec.name] = torch.zeros(spec.shape, dtype=getattr(torch, dtype))
            resting = _forget_peak()
        tensors = receiver.read(news.manifest)
        fetched = time.perf_counter()
        for name, tensor in tensors.items():
            flat = torch.frombuffer(tensor.data, dtype=model[name].dtype)
            model[name].view(-1).copy_(flat)
        receiver.serves(news.manifest)
        pipe.send(time.perf_counter() - fetched)
    pipe.send(_peak_mb() - resting)
    receiver.close()


def _model(name: str, way: str, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from dynatok_online import attention
    from dynatok_online.models import resolve

    torch.manual_seed(0)
    if name == RANDOM_1B:
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
        )
        model: Any = LlamaForCausalLM._from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype)
    attention.prepare(model, "concat")
    if way != "whole":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora)
    return model.train()


def _trajectories(vocabulary: int, version: int = 0) -> list[Any]:
    """Eight edited responses of 48 tokens under three states, sampled by `version`."""
    from benchmarks._edited_response import edited_response
    from dynatok_online.trajectory import VersionRun

    out = []
    for seed in range(_TRAJECTORIES):
        one = edited_response("exact", 64, 8, 48, 3, min(vocabulary, 30000), seed)
        passes = tuple(
            msgspec.structs.replace(p, weight_versions=(VersionRun(version, p.stop - p.start),))
            for p in one.passes
        )
        out.append(msgspec.structs.replace(one, passes=passes))
    return out


def _step_seconds(model: Any) -> float:
    import torch
    import torch.nn.functional as F

    from dynatok_online import attention
    from dynatok_online.rows.plan import plan_rows

    rows = list(plan_rows(_trajectories(model.config.vocab_size), max_tokens=2048))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    times = []
    for _ in range(3):  # the first makes the optimizer's states
        start = time.perf_counter()
        for row in rows:
            out = model(**attention.inputs(row, torch.device("cpu")), use_cache=False)
            F.cross_entropy(out.logits[0].float(), torch.as_tensor(row.targets).long()).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
        optimizer.zero_grad(set_to_none=True)
    return statistics.median(times[1:])


def _move(model: Any) -> None:
    """As an optimizer step would, without its memory."""
    import torch

    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.mul_(1.001)


def _peak_mb() -> float:
    """High-water mark of this process's memory."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def _forget_peak() -> float:
    """Begin a new high-water mark, at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()
