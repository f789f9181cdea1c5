"""vLLM itself, behind our interfaces: what is recorded is what it did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from actor.config import SamplingConfig
from actor.online.weight_updater import WeightUpdater
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Serving
from dynatok_online import tiny
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.tiny import tokenizer, world
from dynatok_online.trajectory import Trajectory
from protocol.weights.shm import ShmReceiver
from protocol.wire.messages import WeightsApplied, WeightsRejected
from tests.actor.models import full_forward, nudged
from tests.conftest import STEP_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SAMPLING = SamplingConfig(ignore_eos=True)
PREFIX = "x" * 100
A, B = SlotState("UPPER CASE", "upper"), SlotState("lower case", "lower")


def encode(text: str) -> list[int]:
    return [tokenizer.VOCAB.get(c, tokenizer.UNK_ID) for c in text]


def decode(token_ids: Any) -> str:
    names = list(tokenizer.VOCAB)
    return "".join(names[i] if len(names[i]) == 1 else "#" for i in token_ids)


def task(name: str, *edits: tuple[int, SlotState], max_tokens: int = 60) -> Task:
    planned = tuple(ScheduledEdit(index, "case", state) for index, state in edits)
    return Task(name, PREFIX + "{{case}}" + "y" * 30, {"case": A}, planned, max_tokens)


def session(serving: Serving, one: Task, **more: Any) -> LiveSession:
    return LiveSession(one, serving, encode=encode, decode=decode, sampling=SAMPLING, **more)


def sampling_gap(model: PreTrainedModel, trajectory: Trajectory) -> float:
    """Largest difference between the engine's logprobs and a fresh prompt per pass."""
    gaps = []
    for k, one in enumerate(trajectory.passes):
        expected = full_forward(model, trajectory.tokens(k))[trajectory.fed_length(k) - 1 :]
        gaps.append(np.abs(expected - trajectory.logprobs[one.start : one.stop]).max())
    return float(max(gaps))


def test_passes_edits_and_reuse_are_what_the_engine_did(vllm, serving, reference) -> None:
    one = task("t", (20, B), (41, A))

    finished = vllm.run(session(serving, one).run())

    trajectory = finished.trajectory
    assert [(p.start, p.stop, p.finish_reason) for p in trajectory.passes] == [
        (0, 20, "edit"),
        (20, 41, "edit"),
        (41, 60, "length"),
    ]
    assert [p.states["case"] for p in trajectory.passes] == [A.text, B.text, A.text]
    assert [(e.requested_at, e.effective_at, e.source) for e in trajectory.edits] == [
        (20, 20, "schedule"),
        (41, 41, "schedule"),
    ]
    # 100 characters before the slot hold three whole blocks of 32. Coming back to the first
    # state, the fourth block (100 .. 128, slot and "y"s) and the fifth, up to where the response
    # of the first pass ended (159 positions with KV), are found again.
    assert [p.num_cached_tokens for p in trajectory.passes] == [0, 96, 128]
    assert [tuple(run.origin for run in p.reuse) for p in trajectory.passes] == [(), (0,), (0,)]
    assert finished.problems == ()
    assert not list(audit(trajectory))
    assert sampling_gap(reference, trajectory) < 1e-4
    assert finished.counts.reused_tokens == 224


def test_many_sessions_at_once_hold_up(vllm, serving, reference) -> None:
    tasks = [task(f"m{i}", (7 + i, B), (30 + i, A)) for i in range(24)]

    async def all_at_once() -> list[Finished]:
        return await asyncio.gather(*(session(serving, one).run() for one in tasks))

    for finished in vllm.run(all_at_once()):
        assert finished.problems == ()
        assert not list(audit(finished.trajectory))
        assert sampling_gap(reference, finished.trajectory) < 1e-4


def test_the_same_seed_draws_the_same_tokens_alone_and_in_a_batch(vllm, serving) -> None:
    one = task("seeded", (15, B))

    async def both() -> list[Finished]:
        alone = await session(serving, one).run()
        others = [session(serving, task(f"other{i}")).run() for i in range(8)]
        together = await asyncio.gather(session(serving, one).run(), *others)
        return [alone, together[0]]

    alone, together = vllm.run(both())
    assert alone.trajectory.response.tolist() == together.trajectory.response.tolist()


def test_a_prompt_that_is_computed_in_parts_draws_the_same_tokens(vllm, serving, reference) -> None:
    """Each part samples a token that is thrown away."""
    one = Task("parts", "z" * 400, {}, (), 20)
    in_parts = vllm.run(session(serving, one).run())
    found = vllm.run(session(serving, one).run())

    assert in_parts.counts.computed_tokens > 3 * STEP_TOKENS
    assert found.counts.computed_tokens < STEP_TOKENS
    assert in_parts.trajectory.response.tolist() == found.trajectory.response.tolist()
    assert sampling_gap(reference, in_parts.trajectory) < 1e-4


def test_prompts_longer_than_a_step_of_many_seeded_requests(vllm, serving) -> None:
    """Chunked prefill of seeded requests kills vLLM's CPU worker; we must not run into it."""
    longest = [Task(f"l{i}", "z" * 400 + "{{case}}", {"case": A}, (), 4) for i in range(24)]

    async def all_at_once() -> list[Finished]:
        return await asyncio.gather(*(session(serving, one).run() for one in longest))

    assert all(len(f.trajectory.response) == 4 for f in vllm.run(all_at_once()))


@pytest.mark.parametrize("watched", [False, True])
def test_a_surprise_edit_keeps_every_token_that_arrived(
    vllm, serving, reference, watched: bool
) -> None:
    seen: list[int] = []
    live = session(
        serving, task("live", max_tokens=300), on_tokens=seen.extend if watched else None
    )

    async def edit_while_it_writes() -> Finished:
        running = asyncio.create_task(live.run())
        for text in ("lower case", "UPPER CASE", "Title Case"):
            await asyncio.sleep(0.06)
            await live.edit("case", text)
        return await running

    trajectory = vllm.run(edit_while_it_writes()).trajectory

    assert len(trajectory.response) == 300
    assert [e.text for e in trajectory.edits] == ["lower case", "UPPER CASE", "Title Case"]
    assert all(e.requested_at <= e.effective_at for e in trajectory.edits)
    assert [p.finish_reason for p in trajectory.passes] == ["edit"] * 3 + ["length"]
    assert not list(audit(trajectory))
    assert sampling_gap(reference, trajectory) < 1e-4
    if watched:
        assert seen == trajectory.response.tolist()


def test_cache_events_lost_for_good_cost_the_sessions_in_flight_alone(
    vllm, serving, monkeypatch
) -> None:
    log = vllm.engine.cache_log

    async def nothing_to_replay() -> None:
        pass

    async def lose(batches: int) -> None:
        while batches:
            try:
                log._socket.recv_multipart(zmq.NOBLOCK)
                batches -= 1
            except zmq.Again:
                await asyncio.sleep(0.01)

    async def some(name: str) -> list[Finished]:
        tasks = [task(f"{name}{i}", (30, B), max_tokens=90) for i in range(4)]
        return await asyncio.gather(*(session(serving, one).run() for one in tasks))

    async def scenario() -> tuple[list[Finished], list[Finished]]:
        running = asyncio.create_task(some("in-flight"))
        await lose(2)
        return await running, await some("later")

    lost = log.lost_batches
    with monkeypatch.context() as patched:
        patched.setattr(log, "_replay", nothing_to_replay)
        in_flight, later = vllm.run(scenario())
    assert log.lost_batches == lost + 2
    assert all(one.unaudited and one.problems == () for one in in_flight)
    assert all(one.unaudited == "" and one.problems == () for one in later)
    assert log.remembered == 0


def test_prompt_logprobs(vllm, reference) -> None:
    ids = list(range(5, 75))
    found = vllm.run(vllm.engine.prompt_logprobs(ids, cache_salt="prompt-logprobs"))
    assert np.abs(np.array(found) - full_forward(reference, ids)).max() < 1e-4


def test_an_unknown_engine_argument_is_named() -> None:
    from actor.engine.engine import VllmEngine

    with pytest.raises(ValueError, match="max_model_len"):
        VllmEngine.start("nothing", {"max_model_length": 5})


@pytest.mark.parametrize(
    "argument",
    [
        {"logprobs_mode": "processed_logprobs"},
        {"kv_events_config": {"enable_kv_cache_events": True}},
        {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
    ],
)
def test_an_argument_that_we_cannot_work_with_is_refused(argument: dict[str, Any]) -> None:
    from actor.engine.engine import VllmEngine

    with pytest.raises(ValueError, match=f"{next(iter(argument))}.*leave it out"):
        VllmEngine.start("nothing", argument)


@pytest.mark.parametrize(
    ("policy", "arguments", "says"),
    [
        ("sticky", {"enable_prefix_caching": False}, "enable_prefix_caching is off; write exact"),
        ("turned", {"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'.*write sticky"),
    ],
)
def test_a_policy_that_it_cannot_follow_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, policy: str, arguments: dict[str, Any], says: str
) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    from actor.engine.engine import VllmEngine

    def begins(*config: Any, **settings: Any) -> None:
        raise AssertionError("the engine starts")

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", begins)
    with pytest.raises(ValueError, match=f"reuse is '{policy}', but .*{says}"):
        VllmEngine.start(tiny.resolve("tiny"), arguments, reuse=["exact", policy])


# Weights.


def test_new_weights_while_sessions_write(vllm, serving, reference, ring) -> None:
    """Passes go on under the new weights, take no KV of the old ones, and are labelled right."""
    models = {1: nudged(reference, 1), 2: nudged(reference, 2), 3: reference}
    weights = WeightUpdater(vllm.engine, serving, ShmReceiver(vllm.run_id), timeout=30)
    tasks = [task(f"w{i}", (50, B), (150, A), max_tokens=300) for i in range(8)]

    async def write_and_update() -> tuple[list[Finished], list[Any]]:
        running = [asyncio.create_task(session(serving, one).run()) for one in tasks]
        answers = []
        for version, model in models.items():
            await asyncio.sleep(0.1)
            answers.append(await weights.update(ring(version, model)))
        return await asyncio.gather(*running), answers

    versions_seen = set()
    try:
        finished, answers = vllm.run(write_and_update())
    finally:
        vllm.run(vllm.engine.set_weight_label("default"))
    for answer in answers:
        assert isinstance(answer, WeightsApplied), answer
        assert answer.canary_gap < 1e-4
    by_version = {0: reference, **models}
    restarts = 0
    for one in finished:
        trajectory = one.trajectory
        assert one.problems == ()
        assert not list(audit(trajectory))
        last = 0
        for k, pass_ in enumerate(trajectory.passes):
            (run,) = pass_.weight_versions
            versions_seen.add(run.version)
            restarts += pass_.finish_reason == "weights"
            expected = full_forward(by_version[run.version], trajectory.tokens(k))
            found = trajectory.logprobs[pass_.start : pass_.stop]
            gap = np.abs(expected[trajectory.fed_length(k) - 1 :] - found).max()
            assert gap < 1e-4, (k, run.version)
            if run.version != last:
                assert all(reuse.origin < 0 for reuse in pass_.reuse), "KV of older weights"
            last = run.version
    assert len(versions_seen) >= 3
    assert 0 < restarts <= sum(answer.restarted_passes for answer in answers)


@pytest.mark.parametrize("fault", ["wrong values", "swapped", "unchanged"])
def test_the_canary_catches_wrong_weights(vllm, serving, reference, ring, fault: str) -> None:
    right, other = nudged(reference, 4), nudged(reference, 5)

    def tamper(state: dict[str, Any]) -> None:
        if fault == "wrong values":
            state["model.layers.1.mlp.up_proj.weight"] *= 1.5
        elif fault == "swapped":
            a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
            state[a], state[b] = state[b], state[a]

    weights = WeightUpdater(vllm.engine, serving, ShmReceiver(vllm.run_id), timeout=30)
    text = list(range(20, 60))

    async def updates() -> list[Any]:
        answers = [await weights.update(ring(10, right))]
        model = right if fault == "unchanged" else other
        answers.append(await weights.update(ring(11, model, canary_of=other, tamper=tamper)))
        answers.append(await vllm.engine.prompt_logprobs(text, cache_salt=serving.new_salt(0)))
        answers.append(await weights.update(ring(12, reference)))
        return answers

    good, bad, after, last = vllm.run(updates())

    assert isinstance(good, WeightsApplied)
    assert isinstance(bad, WeightsRejected)
    assert bad.serving == 10
    assert "canary" in bad.reason
    assert np.abs(np.array(after) - full_forward(right, text)).max() < 1e-4, "not rolled back"
    assert isinstance(last, WeightsApplied)
    assert serving.version == 12


def test_a_stream_goes_on_while_weights_are_on_trial(vllm, reference, ring) -> None:
    """What a stream has handed over counts, whether they are taken or refused."""
    gate = Serving(vllm.engine, "trial", "continue")
    weights = WeightUpdater(vllm.engine, gate, ShmReceiver(vllm.run_id), timeout=30)
    first, wrong = nudged(reference, 7), nudged(reference, 8)
    seen: list[int] = []
    live = session(gate, task("trial", max_tokens=300), on_tokens=seen.extend)

    async def until(tokens: int) -> None:
        while len(seen) < tokens:
            await asyncio.sleep(0.005)

    async def updates() -> tuple[Finished, list[Any]]:
        answers = [await weights.update(ring(30, first))]
        running = asyncio.create_task(live.run())
        await until(20)
        answers.append(await weights.update(ring(31, wrong, canary_of=reference)))
        await until(60)
        answers.append(await weights.update(ring(32, reference)))
        return await running, answers

    finished, (good, bad, last) = vllm.run(updates())
    vllm.run(vllm.engine.set_weight_label("default"))
    assert isinstance(good, WeightsApplied)
    assert isinstance(bad, WeightsRejected)
    assert isinstance(last, WeightsApplied)
    assert finished.problems == ()
    assert seen == finished.trajectory.response.tolist()
    assert len(seen) == 300
    assert set(finished.trajectory.versions().tolist()) == {30, 32}


def test_a_payload_that_fails_half_way_is_rolled_back(vllm, serving, reference, ring) -> None:
    """A manifest that passes every hash but lacks a tensor: the worker refuses, and recovers."""
    import msgspec

    weights = WeightUpdater(vllm.engine, serving, ShmReceiver(vllm.run_id), timeout=30)
    text = list(range(20, 60))

    async def updates() -> list[Any]:
        answers: list[Any] = [await weights.update(ring(20, reference))]
        weights._expected = None  # let the worker find out
        broken = ring(21, nudged(reference, 6))
        broken = msgspec.structs.replace(broken, tensors=broken.tensors[:-3])
        answers.append(await weights.update(broken))
        answers.append(await vllm.engine.prompt_logprobs(text, cache_salt=serving.new_salt(0)))
        answers.append(await weights.update(ring(22, reference)))
        return answers

    good, bad, after, last = vllm.run(updates())

    assert isinstance(good, WeightsApplied)
    assert isinstance(bad, WeightsRejected)
    assert np.abs(np.array(after) - full_forward(reference, text)).max() < 1e-4
    assert isinstance(last, WeightsApplied)


def test_tiny_tasks_run(vllm, serving) -> None:
    """The embedded world's tasks pass through a session and get scores."""
    from itertools import islice

    async def some() -> list[Finished]:
        tasks = islice(world.tasks("train", seed=0), 6)
        return await asyncio.gather(*(session(serving, one).run() for one in tasks))

    for finished in vllm.run(some()):
        assert len(finished.trajectory.response) == world.RESPONSE_LENGTH
        assert len(finished.trajectory.edits) >= 1
