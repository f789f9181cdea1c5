"""vLLM's own scheduler with few blocks: room for the requests of people, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")
from actor.engine import urgent
from dynatok_online import tiny

pytestmark = pytest.mark.engine

BLOCKS = 20  # of 32 tokens; one of them is never handed out


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A scheduler without workers: `step` says who was scheduled, and gives each a token."""
    monkeypatch.setenv("VLLM_PLUGINS", "none")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    monkeypatch.setattr(Scheduler, "schedule", Scheduler.schedule)  # put back afterwards
    urgent.install()
    init_none_hash(sha256)
    hasher = get_request_block_hasher(32, sha256)

    def make(policy: str = "priority", places: int = 8, chunks: bool = False) -> Any:
        arguments = AsyncEngineArgs(
            model=tiny.resolve("tiny"),
            skip_tokenizer_init=True,
            dtype="float32",
            block_size=32,
            max_model_len=512,
            max_num_seqs=places,
            scheduling_policy=policy,
            enable_prefix_caching=True,
            enable_chunked_prefill=chunks,
            enforce_eager=True,
        )
        config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = BLOCKS
        layer = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=32, dtype=torch.float32)
        made: Any = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], layer)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=32,
            hash_block_size=32,
        )

        def add(name: str, tokens: int, more: int, priority: int = 0) -> Any:
            request = Request(
                name,
                [7 + len(made.requests)] * tokens,
                SamplingParams(max_tokens=more, ignore_eos=True),
                None,
                arrival_time=float(len(made.requests)),
                priority=priority,
                block_hasher=hasher,
            )
            made.add_request(request)
            return request

        def step() -> list[str]:
            out = made.schedule()
            names = list(out.num_scheduled_tokens)
            index = {name: i for i, name in enumerate(names)}
            made.update_from_output(
                out,
                ModelRunnerOutput(
                    req_ids=names,
                    req_id_to_index=index,
                    sampled_token_ids=[
                        [9]
                        if made.requests[name].num_computed_tokens >= made.requests[name].num_tokens
                        else []
                        for name in names
                    ],
                    logprobs=None,
                    prompt_logprobs_dict={},
                    pooler_output=[],
                ),
            )
            return names

        made.add, made.step = add, step
        return made

    return make


def running(scheduler: Any) -> list[str]:
    return [one.request_id for one in scheduler.running]


def until_all_have_ended(scheduler: Any) -> None:
    steps = 0
    while scheduler.has_requests():
        scheduler.step()
        steps += 1
        assert steps < 10_000
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS - 1


def test_blocks_are_taken_from_whoever_came_last(scheduler: Callable[..., Any]) -> None:
    one = scheduler()
    others = [one.add(f"c{i}", 100, 300) for i in range(4)]
    for _ in range(20):
        one.step()
    assert len(running(one)) == 4
    person = one.add("person", 300, 5, priority=-1)
    assert one.step() == ["person"], "the others wait for it"
    assert running(one) == ["person", "c0", "c1"], "ten blocks, and c2 and c3 had four each"
    assert one.step() == ["person", "c0", "c1"]
    while "person" in running(one):
        one.step()
    assert person.num_preemptions == 0
    assert [other.num_preemptions for other in others][:2] == [0, 0]
    until_all_have_ended(one)
    assert [other.num_output_tokens for other in others] == [300] * 4


def test_a_place_is_made_where_blocks_are_free(scheduler: Callable[..., Any]) -> None:
    one = scheduler(places=2)
    for i in range(3):
        one.add(f"c{i}", 40, 100)
    one.step()
    one.add("person", 40, 2, priority=-1)
    assert one.step() == ["person"]
    assert running(one) == ["person", "c0"]
    assert [request.request_id for request in one.waiting] == ["c1", "c2"]
    until_all_have_ended(one)


def test_a_head_and_its_pass_are_let_in_together(scheduler: Callable[..., Any]) -> None:
    one = scheduler(places=3)
    for i in range(3):
        one.add(f"c{i}", 150, 100)
    one.step()
    one.add("person.0", 100, 1, priority=-1)
    one.add("person", 200, 2, priority=-1)
    assert one.step() == ["person.0", "person"]
    assert "c0" in running(one)
    until_all_have_ended(one)


def test_nobody_else_is_let_in_beside_a_person(scheduler: Callable[..., Any]) -> None:
    """Places are free, and others wait."""
    one = scheduler()
    one.add("c0", 40, 100)
    one.add("first", 40, 100, priority=-1)
    one.step()
    one.add("person", 40, 2, priority=-1)
    one.add("c1", 40, 100)
    assert one.step() == ["first", "person"]
    assert sorted(one.step()) == ["c0", "c1", "first", "person"]
    until_all_have_ended(one)


def test_nobody_takes_the_blocks_of_a_pass_that_was_edited(
    scheduler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scheduler()
    one.add("c0", 100, 300)
    one.add("person", 300, 2, priority=-1)
    one.add("c1", 200, 20)
    assert one.step() == ["person"]
    assert one.step() == ["person", "c0"], "no blocks for c1"
    assert one.step() == ["c0"], "the person may go on"
    monkeypatch.setattr(urgent, "GAP", 0.0)
    assert one.step() == ["c0", "c1"]
    until_all_have_ended(one)


def test_prompts_come_in_parts_beside_a_person(
    scheduler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scheduler(chunks=True)
    person = one.add("person", 40, 20, priority=-1)
    one.step()
    c0 = one.add("c0", 200, 50)
    one.step()
    assert (person.num_output_tokens, c0.num_computed_tokens) == (2, urgent.PART["cpu"])
    one.step()
    assert (person.num_output_tokens, c0.num_computed_tokens) == (3, 2 * urgent.PART["cpu"] + 1)
    monkeypatch.setattr(urgent, "THERE", 0.0)
    one.step()
    assert (person.num_output_tokens, c0.num_output_tokens) == (4, 1)
    until_all_have_ended(one)


def test_people_take_nothing_from_each_other(scheduler: Callable[..., Any]) -> None:
    one = scheduler()
    first = one.add("first", 300, 50, priority=-1)
    one.step()
    one.add("second", 400, 2, priority=-1)
    assert one.step() == ["first"]
    until_all_have_ended(one)
    assert first.num_preemptions == 0


@pytest.mark.parametrize(("policy", "priority"), [("fcfs", -1), ("priority", 0)])
def test_nobody_else_is_preempted_early(
    scheduler: Callable[..., Any], policy: str, priority: int
) -> None:
    one = scheduler(policy)
    others = [one.add(f"c{i}", 100, 300) for i in range(4)]
    one.step()
    one.add("late", 300, 5, priority=priority)
    assert one.step() == ["c0", "c1", "c2", "c3"]
    assert [other.num_preemptions for other in others] == [0] * 4
