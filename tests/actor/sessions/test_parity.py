"""Random trajectories of the real engine: the learner rebuilds every log-probability.

Slots, toggles, edits at the first and the last token, two at once, surprises, eviction,
preemption, sessions that go before others, and new weights in the middle. What the engine sampled
from must be what the records say, by two ways of rebuilding it: the learner's packed spans, and an
oracle with a real KV cache.
"""

from __future__ import annotations

import asyncio
import random
import string
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from actor.config import OnWeights, ReusePolicy, SamplingConfig
from actor.online.weight_updater import WeightUpdater
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Serving
from dynatok_online.prompt import Placement
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.tiny import tokenizer
from dynatok_online.trajectory import OUTSIDE, Pass, Reuse, Trajectory
from protocol.weights.shm import ShmReceiver
from protocol.wire.messages import WeightsApplied
from tests.actor.kv_oracle import kv_logprobs
from tests.actor.models import nudged

pytestmark = pytest.mark.engine

REUSE = ("exact", "sticky", "refresh", "turned")
PEOPLE = 0.2
"""Share of the sessions for which somebody waits: they go before the others."""
MODES = [(reuse, place) for reuse in REUSE for place in ("head", "late")]


def encode(text: str) -> list[int]:
    return [tokenizer.VOCAB.get(c, tokenizer.UNK_ID) for c in text]


def random_task(rng: random.Random, name: str) -> Task:
    """1 to 3 slots, up to 5 edits: at the first and last token, toggles, two at once."""

    def text(low: int, high: int) -> str:
        letters = rng.choices(string.ascii_lowercase, k=rng.randint(low, high))
        return "".join(letters)

    slots = [f"s{i}" for i in range(rng.randint(1, 3))]
    template = text(1, 90) + "\n"
    for slot in slots:
        template += f"{text(0, 8)}{{{{{slot}}}}}{rng.choice(['', chr(10)])}{text(0, 40)}"
    template += "\n" + text(0, 40)
    states = {slot: [text(1, 40) for _ in range(rng.randint(2, 3))] for slot in slots}
    length = rng.randint(30, 170)
    places = [1, length - 1, *(rng.randint(1, length - 1) for _ in range(3))]
    edits = []
    for index in sorted(rng.sample(places, rng.randint(0, 5))):
        for slot in rng.sample(slots, 1 if rng.random() < 0.7 else min(2, len(slots))):
            edits.append(ScheduledEdit(index, slot, SlotState(rng.choice(states[slot]))))
    first = {slot: SlotState(rng.choice(states[slot])) for slot in slots}
    widest = {slot: max(texts, key=len) for slot, texts in states.items()}
    # Every slot is as wide as its longest state from the start: a surprise may bring it.
    edits.append(ScheduledEdit(length - 1, slots[-1], SlotState(widest[slots[-1]])))
    return Task(name, template, first, tuple(edits), length, seed=rng.randrange(2**31))


def random_refresh(rng: random.Random) -> ReusePolicy:
    """Some tokens or none, all, or as many as are drawn for each pass."""
    last = rng.choice(["0", "1", "31", str(rng.randint(2, 200)), "999", "0-128", "0-300"])
    first = rng.choice(["", "", "+1", f"+{rng.randint(2, 90)}"])
    return f"refresh:{last}{first}"


@dataclass
class Swarm:
    """Many sessions of one mode at once, with surprises and new weights in the middle."""

    vllm: Any
    ring: Any
    reference: Any
    reuse: ReusePolicy
    placement: Placement
    count: int
    updates: int
    on_weights: OnWeights
    seed: int
    """Besides the tasks, chooses each session's tokens to compute anew where `reuse` is
    `refresh`."""
    at_once: int = 32
    temperatures: tuple[float, ...] = (1.0,)
    """Each session has one of them."""
    first: int = 0
    """The first weight version; the ring takes each version once."""
    models: dict[int, Any] = field(default_factory=dict)

    async def run(self) -> list[Finished]:
        name = f"parity-{self.reuse}-{self.placement}-{self.on_weights}-{self.seed}"
        serving = Serving(self.vllm.engine, name, self.on_weights)
        weights = WeightUpdater(
            self.vllm.engine, serving, ShmReceiver(self.vllm.run_id), timeout=30
        )
        self.models = {self.first: self.reference}
        await self._update(weights, self.first)
        rng = random.Random(name)
        gate = asyncio.Semaphore(self.at_once)
        done: list[Finished] = []

        async def one(i: int) -> None:
            async with gate:
                done.append(await self._session(serving, random.Random(f"{name}/{i}"), i))

        tasks = [asyncio.create_task(one(i)) for i in range(self.count)]
        for update in range(1, self.updates + 1):
            version = self.first + update
            goal = self.count * update // (self.updates + 1)
            while len(done) < max(goal, 1) and not all(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            self.models[version] = nudged(self.reference, rng.randrange(10**6))
            await self._update(weights, version)
        await asyncio.gather(*tasks)
        await self._update(weights, self.first + self.updates + 1, self.reference)
        return done

    async def _update(self, weights: WeightUpdater, version: int, model: Any = None) -> None:
        manifest = self.ring(version, self.models[version] if model is None else model)
        answer = await weights.update(manifest)
        assert isinstance(answer, WeightsApplied), answer

    async def _session(self, serving: Serving, rng: random.Random, number: int) -> Finished:
        task = random_task(rng, f"{self.seed}-{number}")
        surprised = rng.random() < 0.4
        live = LiveSession(
            task,
            serving,
            encode=encode,
            decode=lambda token_ids: "",
            sampling=SamplingConfig(
                ignore_eos=True, temperature=self.temperatures[number % len(self.temperatures)]
            ),
            reuse=random_refresh(rng) if self.reuse == "refresh" else self.reuse,
            placement=self.placement,
            slot_width=0 if self.reuse == "turned" else 40,
            urgent=rng.random() < PEOPLE,
            on_tokens=(lambda token_ids: None) if surprised else None,
        )
        running = asyncio.create_task(live.run())
        if surprised:
            for _ in range(rng.randint(1, 3)):
                await asyncio.sleep(rng.choice([0, 0.01, 0.1, 0.5]))
                slot = rng.choice(list(task.states))
                text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 40)))
                await live.edit(slot, text)
        return await running


def check(swarm: Swarm, done: list[Finished]) -> dict[str, float]:
    """Every token of every trajectory; counts of what happened."""
    assert len(done) == swarm.count
    gaps, spans_gaps = [], []
    for one in done:
        assert one.problems == ()
        assert one.counts.audit_mismatches == 0
        assert audit(one.trajectory) == []
        gaps.append(np.abs(kv_logprobs(swarm.models, one.trajectory) - one.trajectory.logprobs))
    trajectories = [one.trajectory for one in done]
    for version, model in swarm.models.items():
        for each, values in zip(trajectories, spans_logprobs(model, trajectories), strict=True):
            mine = each.rebuildable() & (each.versions() == version)
            spans_gaps.append(np.abs(values[mine] - each.logprobs[mine]))
    by_oracle, by_spans = np.concatenate(gaps), np.concatenate(spans_gaps)
    assert by_oracle.max() < 1e-4, "the records are not what the engine sampled from"
    assert by_spans.max() < 1e-4, "the learner's spans are not what the engine sampled from"
    assert by_oracle.mean() < 1e-5
    assert by_spans.mean() < 1e-5
    if swarm.on_weights == "restart":
        assert len(by_spans) == len(by_oracle), "a token was not compared"
    return {
        "trajectories": len(done),
        "tokens": len(by_oracle),
        "largest": float(by_oracle.max()),
        "mean": float(by_oracle.mean()),
        "passes": sum(one.counts.passes for one in done),
        "edits": sum(one.counts.edits for one in done),
        "reused": sum(one.counts.reused_tokens for one in done),
        "computed": sum(one.counts.computed_tokens for one in done),
        "preemptions": sum(one.counts.preemptions for one in done),
        "mixed": sum(len(p.weight_versions) > 1 for t in trajectories for p in t.passes),
        "split": sum(p.finish_reason == "preempted" for t in trajectories for p in t.passes),
        "versions": len({int(v) for t in trajectories for v in t.versions()}),
        "moved": sum(
            run.stop - run.start
            for t in trajectories
            for p in t.passes
            for run, shift in p.moved_reuse()
            if shift
        ),
    }


def spans_logprobs(model: Any, trajectories: list[Trajectory]) -> list[np.ndarray]:
    """[R] per trajectory: what the learner's packed rows say under `model`."""
    import copy

    import torch

    from dynatok_online import attention
    from dynatok_online.rows.plan import plan_rows

    model = copy.deepcopy(model)
    attention.prepare(model, "concat")
    out = [np.full(len(one.response), np.nan) for one in trajectories]
    for row in plan_rows(trajectories, max_tokens=4096):
        with torch.no_grad():
            logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets, dtype=torch.long)
        values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].numpy()
        for index in np.unique(row.trajectory):
            mine = row.trajectory == index
            out[index][row.response_index[mine]] = values[mine]
    return out


def swarm_of(vllm: Any, ring: Any, reference: Any, **options: Any) -> dict[str, float]:
    swarm = Swarm(vllm, ring, reference, **options)
    evicted = vllm.engine.cache_log.removed_blocks
    try:
        done = vllm.run(swarm.run(), timeout=280)
    finally:
        vllm.run(vllm.engine.set_weight_label("default"))
    found = check(swarm, done)
    found["evicted"] = vllm.engine.cache_log.removed_blocks - evicted
    print(options, found)
    return found


@pytest.mark.parametrize(("reuse", "placement"), MODES)
def test_parity(vllm, ring, reference, reuse: str, placement: str) -> None:
    found = swarm_of(
        vllm,
        ring,
        reference,
        reuse=reuse,
        placement=placement,
        count=16,
        updates=1,
        on_weights="restart",
        seed=0,
        at_once=16,
    )
    assert found["reused"] > 0
    assert found["versions"] == 2
    assert (found["moved"] > 0) == (reuse == "turned" and placement == "head")


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
def test_parity_of_passes_that_go_on_under_new_weights(vllm, ring, reference, reuse: str) -> None:
    found = swarm_of(
        vllm,
        ring,
        reference,
        reuse=reuse,
        placement="head",
        count=8,
        updates=2,
        on_weights="continue",
        seed=0,
        at_once=6,
    )
    assert found["mixed"] > 0


def in_full(vllm, ring, reference, reuse: str, placement: str, **more: Any) -> None:
    """More than 60 trajectories, in a cache that does not hold the sessions that run at once."""
    shared = {"vllm": vllm, "ring": ring, "reference": reference, **more}
    mode = {"reuse": reuse, "placement": placement}
    crowded = swarm_of(**shared, **mode, count=60, updates=2, on_weights="restart", seed=1)
    calm = swarm_of(
        **shared, **mode, count=16, updates=3, on_weights="continue", seed=2, at_once=6, first=10
    )
    assert crowded["preemptions"] > 0
    assert crowded["evicted"] > 0
    assert crowded["versions"] == 3
    assert calm["mixed"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("reuse", "placement"), MODES)
def test_parity_in_full(vllm, ring, reference, reuse: str, placement: str) -> None:
    in_full(vllm, ring, reference, reuse, placement)


def test_a_corrupted_record_is_caught(vllm, serving, reference) -> None:
    """One reused count changed: the audit says so. One origin changed: the audit or the gap."""
    task = Task(
        "corrupt",
        "x" * 100 + "\n{{s}}\n" + "y" * 30,
        {"s": SlotState("a" * 12)},
        tuple(
            ScheduledEdit(index, "s", SlotState(text * 12))
            for index, text in ((60, "b"), (120, "c"), (160, "a"))
        ),
        200,
    )
    live = LiveSession(
        task,
        serving,
        encode=encode,
        decode=lambda token_ids: "",
        sampling=SamplingConfig(ignore_eos=True),
        reuse="sticky",
    )
    right = vllm.run(live.run()).trajectory
    assert not audit(right)
    assert largest_gap(reference, right) < 1e-4
    passes = list(right.passes)
    last = len(passes) - 1
    origins = [run.origin for run in passes[last].reuse]
    assert len(set(origins)) >= 3, "the record has too few origins to corrupt"
    counted = msgspec.structs.replace(
        passes[last], num_cached_tokens=passes[last].num_cached_tokens + right.block_size
    )
    assert audit(msgspec.structs.replace(right, passes=(*passes[:last], counted)))
    caught = 0
    for i, run in enumerate(passes[last].reuse):
        for origin in {*range(last), OUTSIDE} - {run.origin}:
            reuse = list(passes[last].reuse)
            reuse[i] = Reuse(origin, run.start, run.stop)
            wrong = msgspec.structs.replace(passes[last], reuse=tuple(reuse))
            trajectory = msgspec.structs.replace(right, passes=(*passes[:last], wrong))
            if not audit(trajectory) and largest_gap(reference, trajectory) < 1e-4:
                # Nothing was changed: the other pass holds the very same KV there.
                assert same_kv(right, passes, run, origin), (i, run, origin)
            else:
                caught += 1
    assert caught > 0


def test_what_covers_everything_behind_the_slot_is_exact(vllm, serving) -> None:
    """The same origins and log-probabilities, edit by edit, with a toggle; less computes less."""

    def made(reuse: ReusePolicy, states: str) -> Finished:
        edits = tuple(
            ScheduledEdit(at, "s", SlotState(text * 28))
            for at, text in zip((70, 110, 160), states[1:], strict=True)
        )
        task = Task("t", "x" * 100 + "{{s}}", {"s": SlotState(states[0] * 28)}, edits, 200)
        serving.open(0, serving.new_salt(0))  # whoever comes first would compute for all
        live = LiveSession(
            task,
            serving,
            encode=encode,
            decode=lambda token_ids: "",
            sampling=SamplingConfig(ignore_eos=True),
            reuse=reuse,
            slot_width=28,
        )
        done = vllm.run(live.run())
        assert done.problems == ()
        assert not audit(done.trajectory)
        return done

    exact, whole = made("exact", "abab"), made("refresh:160", "abab")
    assert [one.reuse for one in whole.trajectory.passes] == [
        one.reuse for one in exact.trajectory.passes
    ]
    assert whole.trajectory.response.tolist() == exact.trajectory.response.tolist()
    gap = np.abs(whole.trajectory.logprobs - exact.trajectory.logprobs).max()
    assert gap < 1e-5
    policies = ("exact", "refresh:96", "refresh:64", "refresh:32", "sticky", "refresh:0")
    computed = [made(one, "abcd").counts.computed_tokens for one in policies]
    assert computed[:5] == sorted(set(computed), reverse=True)
    assert computed[5] == computed[4]


def largest_gap(model: Any, trajectory: Trajectory) -> float:
    (values,) = spans_logprobs(model, [trajectory])
    return float(np.abs(values - trajectory.logprobs).max())


def same_kv(trajectory: Trajectory, passes: list[Pass], run: Reuse, origin: int) -> bool:
    """Whether `origin` names the same KV at the positions of `run` as the record does."""
    if origin == OUTSIDE:  # computed on the pass's own beginning, as the first pass's was
        return run.start == 0
    held = {p: one.origin for one in passes[origin].reuse for p in range(one.start, one.stop)}
    return all(held.get(p, origin) == run.origin for p in range(run.start, run.stop))
