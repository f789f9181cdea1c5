"""Blocks that are put together between two steps of vLLM: text has moved, and its keys are turned.

A slot that grows or shrinks moves what stands behind it. A block of what was there is then made in
a free block of the cache, in two halves. In the engine's process, where a request is given its
blocks, a block is taken as for a request, gets the name that says what it is made of, and is free
again: the request finds it as any other cached block, and if it is not found in time, it is evicted
as any other. What it is made of goes to the worker with the step, which copies before it computes.
The blocks that it is made of are nobody's to change, and stay what they are.

Blocks are written by vLLM's own function that writes keys and values into the cache of a layer. Its
inverse does not exist, so it is asked where in a block it writes each number (`Layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id, maybe_convert_block_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.worker_base import WorkerWrapperBase

from actor.sessions.moved import Part, Source, is_whole
from dynatok_online.attention.turning import frequencies, turn

BASE = 64
UNITS = (1, BASE, BASE**2, BASE**3)
"""A block of a layer has fewer numbers than `BASE**4`."""

Name = Any  # vLLM's BlockHash
Copy = tuple[int, list[tuple[int, int, int, int]]]
"""A block to make, and what of: places `start .. stop` of a block, moved by a step."""


def name_of(parts: Sequence[Part], size: int, hash_function: Callable[[Any], Name]) -> Name:
    """Of a block that is made of `parts`."""
    if is_whole(parts, size):
        return parts[0].name
    return hash_function((b"moved", *(tuple(part[:4]) for part in parts)))


def said(parts: Sequence[Part]) -> list[tuple[Any, int, int, int]]:
    """`parts` as cache events name blocks."""
    return [(maybe_convert_block_hash(one.name), one.start, one.stop, one.shift) for one in parts]


class Room:
    """Free blocks for what a request is made of, while its blocks are looked for."""

    def __init__(self, manager: KVCacheManager, moves: bool) -> None:
        self._manager = manager
        self._pool: BlockPool = manager.block_pool
        self._moves = moves
        self._held: list[Any] = []

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *error: object) -> None:
        if self._held:
            self._pool.free_blocks(reversed(self._held))

    def hold(self, name: Name) -> None:
        """This block was found: it is not taken for another."""
        if self._moves:
            found = self._pool.get_cached_block(name, [0])
            assert found is not None
            self._pool.touch(found)
            self._held += found

    def put(
        self,
        name: Name,
        parts: Sequence[Part],
        sources: Sequence[Source],
        names: Sequence[Name],
        stop: int,
    ) -> bool:
        """Make a block of `parts`, those of `sources` of the blocks of `names`, which ends at
        position `stop`; False where that cannot be."""
        if not self._moves or not parts or is_whole(parts, self._pool.hash_block_size):
            # What has moved back is computed: exact requests would find it under the same name.
            return False
        as_computed = [(one.name, one.start, one.stop, one.shift) for one in parts]
        as_held = [(names[one.block], one.start, one.stop, one.step) for one in sources]
        for made_of in (as_computed, as_held):  # turned once, if what was computed is still there
            copies = [(self._written(one), start, end, by) for one, start, end, by in made_of]
            if all(block is not None for block, *_ in copies):
                break
        else:
            return False
        if not self._pool.get_num_free_blocks():
            return False
        (block,) = self._pool.get_new_blocks(1)
        key = make_block_hash_with_group_id(name, 0)
        self._pool._insert_block_hash(key, block, num_tokens=stop)
        self._pool.free_blocks([block])  # until it is held
        self._pool.dynatok_filling.discard(block.block_id)
        self._manager.dynatok_copies.append((block.block_id, copies))
        return True

    def _written(self, name: Name) -> int | None:
        """A block of this name whose KV is there before the step computes; None: there is none."""
        found = self._pool.get_cached_block(name, [0])
        if found is None or found[0].block_id in self._pool.dynatok_filling:
            return None
        return int(found[0].block_id)


def install() -> None:
    """Teach vLLM of this process; where no request moves, its steps are as before."""
    new_step_starts, cache_full_blocks = KVCacheManager.new_step_starts, BlockPool.cache_full_blocks
    schedule, execute = Scheduler.schedule, WorkerWrapperBase.execute_model

    def begin(self: KVCacheManager) -> None:
        # Named in this step, and so not computed before the copies are made.
        self.block_pool.dynatok_filling = set()
        self.dynatok_copies = []
        new_step_starts(self)

    def cache(
        self: BlockPool,
        request: Any,
        blocks: Sequence[Any],
        num_cached_blocks: int,
        num_full_blocks: int,
        *arguments: Any,
        **options: Any,
    ) -> None:
        named = blocks[num_cached_blocks:num_full_blocks]
        self.dynatok_filling.update(one.block_id for one in named)
        cache_full_blocks(
            self, request, blocks, num_cached_blocks, num_full_blocks, *arguments, **options
        )

    def scheduled(self: Scheduler, *arguments: Any, **options: Any) -> Any:
        output = schedule(self, *arguments, **options)
        output.dynatok_copies = self.kv_cache_manager.dynatok_copies
        return output

    def executed(self: WorkerWrapperBase, scheduler_output: Any) -> Any:
        copies = getattr(scheduler_output, "dynatok_copies", None)
        if copies:
            worker = self.worker
            if not hasattr(worker, "dynatok_maker"):
                worker.dynatok_maker = BlockMaker(worker.model_runner)
            worker.dynatok_maker.make(copies)
        return execute(self, scheduler_output)

    KVCacheManager.new_step_starts = begin
    BlockPool.cache_full_blocks = cache
    BlockPool.dynatok_filling = set()
    Scheduler.schedule = scheduled
    WorkerWrapperBase.execute_model = executed


class BlockMaker:
    """Makes blocks in the cache of every layer."""

    def __init__(self, runner: Any) -> None:
        (group,) = runner.kv_cache_config.kv_cache_groups
        context = runner.compilation_config.static_forward_context
        self._layers = [context[name] for name in group.layer_names]
        self._size = int(group.kv_cache_spec.block_size)
        self._layouts = [Layout.of(one, self._size) for one in self._layers]
        self._frequencies = frequencies(runner.model_config.hf_text_config)
        check_rotary(runner.get_model(), self._frequencies)

    @torch.inference_mode()
    def make(self, copies: Sequence[Copy]) -> None:
        """In order: what is made may be part of what is made later."""
        batch: list[Copy] = []
        written: set[int] = set()
        for block, made_of in copies:
            if block in written or any(source in written for source, *_ in made_of):
                self._make(batch)
                batch, written = [], set()
            batch.append((block, made_of))
            written.add(block)
        self._make(batch)

    def _make(self, copies: Sequence[Copy]) -> None:
        """All at once: everything is read before anything is written."""
        rows = [
            (source, at, step)
            for _, made_of in copies
            for source, start, stop, step in made_of
            for at in range(start, stop)
        ]
        blocks, at, shifts = torch.tensor(rows).unbind(1)
        to = torch.tensor([block for block, _ in copies])
        slots = (to[:, None] * self._size + torch.arange(self._size)).flatten()
        for layer, layout in zip(self._layers, self._layouts, strict=True):
            key, value = layout.read(layer.kv_cache, blocks, at)
            key = turn(key.transpose(0, 1), shifts, self._frequencies).transpose(0, 1)
            layer.impl.do_kv_cache_update(layer, key.contiguous(), value, layer.kv_cache, slots)


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a block stand in the cache of a layer."""

    key: torch.Tensor
    """[B, H * D] of the key at each place of a block."""
    value: torch.Tensor
    heads: int

    @classmethod
    def of(cls, layer: Any, size: int) -> Layout:
        """Asks the layer's own function that writes: every number is found where it wrote it."""
        cache = layer.kv_cache
        heads, width = layer.num_kv_heads, layer.head_size
        count = size * heads * width
        number = torch.arange(count).view(size, heads, width)
        nothing = torch.zeros(number.shape, dtype=cache.dtype)
        found = []
        for is_key in (True, False):
            # In digits, which every type holds exactly; one is added, since what is not written is
            # zero.
            written = torch.zeros(cache[0].numel(), dtype=torch.long)
            for unit in UNITS:
                digits = (number // unit % BASE + 1).to(cache.dtype)
                block = torch.zeros((1, *cache.shape[1:]), dtype=cache.dtype)
                given = (digits, nothing) if is_key else (nothing, digits)
                layer.impl.do_kv_cache_update(layer, *given, block, torch.arange(size))
                written += unit * block.flatten().long()
            (at,) = torch.nonzero(written, as_tuple=True)
            read = written[at] - sum(UNITS)
            if not torch.equal(read.sort().values, torch.arange(count)):
                raise RuntimeError("vLLM does not keep keys and values as they are; see `Layout`")
            found.append(at[read.argsort()].view(size, heads * width))
        key, value = found
        return cls(key, value, heads)

    def read(
        self, cache: torch.Tensor, blocks: torch.Tensor, at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H, D] keys and values at places `at` of `blocks`."""
        flat = cache.view(len(cache), -1)
        key, value = (flat[blocks[:, None], each[at]] for each in (self.key, self.value))
        return key.view(len(at), self.heads, -1), value.view(len(at), self.heads, -1)


def check_rotary(model: torch.nn.Module, expected: torch.Tensor) -> None:
    """RuntimeError where vLLM turns keys otherwise than these frequencies say."""
    for module in model.modules():
        table = getattr(module, "cos_sin_cache", None)
        if table is None:
            continue
        cos, sin = table[:2].double().chunk(2, -1)
        scale = cos[0]  # position 0 is not turned
        wrong = max(
            float((cos[1] - scale * expected.double().cos()).abs().max()),
            float((sin[1] - scale * expected.double().sin()).abs().max()),
        )
        if wrong > 1e-2 or not module.is_neox_style:
            raise RuntimeError(
                "vLLM turns the keys of this model otherwise than its configuration says, so KV "
                "behind a slot that grows or shrinks cannot be kept; write reuse: sticky"
            )
