"""Slots of any width in the real vLLM: what moves is kept, and nobody else notices it."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actor.config import ReusePolicy, SamplingConfig
from actor.sessions.cache_audit import contradictions
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.moved import Part, Source
from actor.sessions.serving import Serving
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from tests.actor.kv_oracle import kv_logprobs
from tests.actor.sessions.test_parity import encode, largest_gap

pytestmark = pytest.mark.engine


def task(*widths: int, length: int = 200) -> Task:
    """A slot that is so wide in turn, with text before and behind it; each state its own letter."""
    states = [SlotState(chr(ord("a") + width % 26) * width) for width in widths]
    step = length // len(widths)
    edits = tuple(ScheduledEdit(i * step, "s", one) for i, one in enumerate(states) if i)
    return Task("t", "x" * 40 + "{{s}}" + "yz" * 35, {"s": states[0]}, edits, length)


def live(serving: Serving, one: Task, reuse: ReusePolicy, **more: Any) -> LiveSession:
    sampling = SamplingConfig(ignore_eos=True)
    return LiveSession(
        one,
        serving,
        encode=encode,
        decode=lambda token_ids: "",
        sampling=sampling,
        reuse=reuse,
        **more,
    )


def checked(done: Finished, reference: Any) -> Finished:
    assert done.problems == ()
    assert audit(done.trajectory) == []
    oracle = kv_logprobs({0: reference}, done.trajectory)
    assert np.abs(oracle - done.trajectory.logprobs).max() < 1e-4
    assert largest_gap(reference, done.trajectory) < 1e-4
    return done


def test_what_stands_behind_a_slot_is_kept_wherever_it_goes(vllm, serving, reference) -> None:
    done = checked(vllm.run(live(serving, task(5, 9, 38, 3, 5), "turned").run()), reference)
    passes = done.trajectory.passes
    for one in passes[1:]:
        # Of some 110 to 260 positions, the slot and the borders of what moved are computed.
        fed = done.trajectory.fed_length(passes.index(one))
        assert fed - one.num_cached_tokens < 38 + 3 * 32
    assert [set(one.shifts or ()) for one in passes] == [
        set(),
        {0, 4},
        {0, 33, 29},
        {0, -2, -6, -35},
        {0, 2, -4, -33},
    ]
    exact = vllm.run(live(serving, task(5, 9, 38, 3, 5), "exact").run())
    written = done.trajectory.fed_length(0) + len(done.trajectory.response)  # in any case
    again, all_again = (one.counts.computed_tokens - written for one in (done, exact))
    assert again < 0.75 * all_again


def test_text_that_moves_back_is_found_where_it_was(vllm, serving, reference) -> None:
    """Its blocks were never changed, so it is neither copied nor turned a second time."""
    done = checked(vllm.run(live(serving, task(5, 21, 5), "turned").run()), reference)
    first, away, back = done.trajectory.passes
    assert 16 in (away.shifts or ())
    behind = [run for run, shift in back.moved_reuse() if run.origin == 0 and not shift]
    assert sum(run.stop - run.start for run in behind) >= 96
    assert first.reuse == ()


def test_nobody_elses_blocks_change(vllm, serving) -> None:
    """An exact session of the same text, before and after, all of it from the cache."""

    def exact() -> Finished:
        return vllm.run(live(serving, task(5), "exact").run())

    before = exact()
    for widths in ((5, 9), (5, 38), (5, 1, 70)):
        assert vllm.run(live(serving, task(*widths), "turned").run()).problems == ()
    after = exact()
    assert after.counts.reused_tokens > before.counts.reused_tokens
    assert after.trajectory.response.tolist() == before.trajectory.response.tolist()
    gap = np.abs(after.trajectory.logprobs - before.trajectory.logprobs).max()
    assert gap < 1e-5


def test_a_slot_of_one_width_is_sticky(vllm, serving) -> None:
    one = task(28, 28, 28, 28)
    turned, sticky = (
        vllm.run(live(serving, one, reuse, slot_width=width).run())
        for reuse, width in (("turned", 0), ("sticky", 28))
    )
    assert turned.problems == sticky.problems == ()
    assert turned.trajectory.response.tolist() == sticky.trajectory.response.tolist()
    assert [p.num_cached_tokens for p in turned.trajectory.passes[1:]] == [
        p.num_cached_tokens for p in sticky.trajectory.passes[1:]
    ]


def test_wrong_parts_are_caught(vllm, serving, monkeypatch) -> None:
    """What the engine says of a block that moved is held against the record, part by part."""
    log, reports = vllm.engine.cache_log, {}
    blocks_of = log.blocks_of

    async def remembered(name: str, full_blocks: int) -> Any:
        reports[name] = await blocks_of(name, full_blocks)
        return reports[name]

    monkeypatch.setattr(log, "blocks_of", remembered)
    session = live(serving, task(5, 9, 38), "turned")
    assert vllm.run(session.run()).problems == ()
    recorder = session._recorder
    parts, held, size = recorder._parts, recorder._held, recorder.block_size
    before, after = parts[0].scheduled, parts[1].scheduled
    assert before is not None
    assert after is not None
    block = min(after.moved)  # of those that have moved

    def problems(*changed: Part) -> list[str]:
        wrong = replace(after, moved={**after.moved, block: changed})
        tampered = [parts[0], replace(parts[1], scheduled=wrong), *parts[2:]]
        return contradictions(tampered, held, reports, size, recorder.unreported)

    first, *rest = after.moved[block]
    assert problems(first, *rest) == []
    for wrong, says in (
        ([first._replace(shift=first.shift + 1), *rest], "moved by"),
        ([first._replace(start=first.start + 1), *rest], "moved by"),
        (rest, "the engine made it of"),
        ([], "the engine made it of no parts"),
        ([first._replace(name=before.computed[0]), *rest], "was made of other KV"),
    ):
        (problem,) = problems(*wrong)
        assert f"pass 1: block {block} " in problem
        assert says in problem


def layer(dtype: Any, heads: int = 3, width: int = 64, blocks: int = 8) -> Any:
    """A layer of attention with a cache, as vLLM's worker has it."""
    import torch
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, _get_attn_isa

    impl = types.SimpleNamespace(attn_type="decoder", kv_cache_dtype="auto")
    impl.do_kv_cache_update = types.MethodType(CPUAttentionBackendImpl.do_kv_cache_update, impl)
    return types.SimpleNamespace(
        kv_cache=torch.randn(blocks, heads, 32, 2 * width).to(dtype),
        num_kv_heads=heads,
        head_size=width,
        impl=impl,
        isa=_get_attn_isa(dtype, 32, width, "auto"),
        _k_scale_float=1.0,
        _v_scale_float=1.0,
    )


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_what_is_read_is_what_vllm_wrote(vllm, kind: str) -> None:
    import torch

    from actor.engine.turned import Layout

    one = layer(getattr(torch, kind))
    layout = Layout.of(one, 32)
    key, value = torch.randn(2, 32, 3, 64).to(one.kv_cache.dtype)
    one.impl.do_kv_cache_update(one, key, value, one.kv_cache, torch.arange(32) + 64)
    at = torch.arange(32)
    read = layout.read(one.kv_cache, torch.full((32,), 2), at)
    assert torch.equal(read[0], key)
    assert torch.equal(read[1], value)


def test_blocks_are_made_in_order_and_leave_others_alone(vllm) -> None:
    """One is made of another that is made in the same step; one is made where its source was."""
    import torch

    from actor.engine.turned import BlockMaker, Layout
    from dynatok_online.attention.turning import turn

    one = layer(torch.float32)
    maker = BlockMaker.__new__(BlockMaker)
    maker._layers, maker._size, maker._layouts = [one], 32, [Layout.of(one, 32)]
    maker._frequencies = 1e4 ** -(torch.arange(0, 64, 2) / 64)
    at = torch.arange(32)

    def read(block: int) -> Any:
        return maker._layouts[0].read(one.kv_cache, torch.full((32,), block), at)

    before = one.kv_cache.clone()
    (key1, value1), (key2, value2) = read(1), read(2)
    maker.make(
        [
            (3, [(1, 5, 32, 7), (2, 0, 5, 7)]),
            (4, [(3, 0, 32, -7)]),
            (1, [(1, 0, 16, 2), (2, 16, 32, 2)]),
        ]
    )
    key = torch.cat([key1[5:], key2[:5]]).transpose(0, 1)
    turned = turn(key, torch.full((32,), 7), maker._frequencies).transpose(0, 1)
    assert torch.allclose(read(3)[0], turned, atol=1e-6)
    assert torch.equal(read(3)[1], torch.cat([value1[5:], value2[:5]]))
    assert torch.allclose(read(4)[0], key.transpose(0, 1), atol=1e-5)
    assert torch.equal(read(1)[1], torch.cat([value1[:16], value2[16:]]))
    for block in (0, 2, 5, 6, 7):
        assert torch.equal(one.kv_cache[block], before[block])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"world_size": 2}, "one worker"),
        ({"model_type": "gemma3_text"}, "gemma3_text"),
    ],
)
def test_what_cannot_be_is_refused_by_name(vllm, changes: dict[str, Any], says: str) -> None:
    from actor.engine.arguments import why_not_turned

    model = types.SimpleNamespace(
        model_type=changes.get("model_type", "llama"),
        architectures=["Some"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        head_dim=8,
    )
    config = types.SimpleNamespace(
        parallel_config=types.SimpleNamespace(world_size=changes.get("world_size", 1)),
        cache_config=types.SimpleNamespace(cache_dtype=changes.get("cache_dtype", "auto")),
        model_config=types.SimpleNamespace(hf_text_config=model),
    )
    found = why_not_turned(config)
    assert says in found
    assert bool(found) == bool(says)


def room_of(free: int, **cached: str) -> tuple[Any, Any, dict[str, int]]:
    """A pool of blocks in vLLM, with blocks of these names cached, and `free` ones besides."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

    pool = BlockPool(1 + free + len(cached), enable_caching=True, hash_block_size=32)
    blocks = pool.get_new_blocks(len(cached))
    for name, block in zip(cached, blocks, strict=True):
        key = make_block_hash_with_group_id(name.encode(), 0)
        pool._insert_block_hash(key, block, num_tokens=32)
    pool.free_blocks(blocks)
    pool.dynatok_filling = set()
    manager = types.SimpleNamespace(block_pool=pool, dynatok_copies=[])
    return manager, pool, {name: one.block_id for name, one in zip(cached, blocks, strict=True)}


SOURCES = (Source(0, 16, 32, 3), Source(1, 0, 16, 3))
PARTS = (Part(b"a", 16, 32, 3), Part(b"b", 0, 16, 3))


def test_a_block_that_is_put_together_waits_to_be_found() -> None:
    from actor.engine.turned import Room

    manager, pool, blocks = room_of(1, a="", b="")
    with Room(manager, True) as room:
        assert room.put(b"m", PARTS, SOURCES, [b"a", b"b"], 64)
    ((block, copies),) = manager.dynatok_copies
    assert copies == [(blocks["a"], 16, 32, 3), (blocks["b"], 0, 16, 3)]
    assert [one.block_id for one in pool.get_cached_block(b"m", [0])] == [block]
    assert block not in blocks.values()
    assert pool.get_num_free_blocks() == 3


def test_what_this_step_computes_cannot_be_copied_before_it() -> None:
    from actor.engine.turned import Room

    manager, pool, blocks = room_of(1, a="", b="")
    pool.dynatok_filling.add(blocks["b"])
    with Room(manager, True) as room:
        assert not room.put(b"m", PARTS, SOURCES, [b"a", b"b"], 64)
    assert manager.dynatok_copies == []
    assert pool.get_num_free_blocks() == 3


def test_what_was_found_is_not_evicted_for_what_is_put_together() -> None:
    from actor.engine.turned import Room

    manager, pool, _ = room_of(1, a="", b="")
    with Room(manager, True) as room:
        room.hold(b"a")
        room.hold(b"b")
        assert room.put(b"m", PARTS, SOURCES, [b"a", b"b"], 64)
        room.hold(b"m")
        assert not room.put(b"n", PARTS, SOURCES, [b"a", b"b"], 64), "there was no block"
        assert pool.get_num_free_blocks() == 0
    assert pool.get_num_free_blocks() == 3
    assert all(pool.get_cached_block(name, [0]) for name in (b"a", b"b", b"m"))


def test_what_was_held_serves_where_what_was_computed_is_gone() -> None:
    from actor.engine.turned import Room

    gone = (Part(b"x", 16, 32, 7), Part(b"y", 0, 16, 7))
    manager, _, blocks = room_of(1, a="", b="")
    with Room(manager, True) as room:
        assert room.put(b"m", gone, SOURCES, [b"a", b"b"], 64)
        assert not room.put(b"n", gone, SOURCES, [b"a", b"z"], 64)
    ((_, copies),) = manager.dynatok_copies
    assert copies == [(blocks["a"], 16, 32, 3), (blocks["b"], 0, 16, 3)]


def test_what_moves_back_is_never_put_together_under_its_own_name() -> None:
    """Turned forth and back, it is not what an exact request would have computed to the bit."""
    from actor.engine.turned import Room

    manager, _, _ = room_of(1, a="", b="")
    with Room(manager, True) as room:
        assert not room.put(b"x", (Part(b"x", 0, 32, 0),), SOURCES, [b"a", b"b"], 32)
