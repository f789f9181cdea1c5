"""Sticky reuse inside vLLM: what a session's requests may take from the prefix cache.

Runs in vLLM's engine process. vLLM finds cached blocks by names: the hash of a block's tokens and
of the name before it. For a sticky request this changes, and nothing for any other:

- Where it is given its blocks, each block that the session's previous request held with the same
  tokens is asked for under the name that it had there, so it is found whatever has changed before
  it. The first block of which neither that nor the ordinary name is cached ends the search.
- Where a slot has changed its width, it is told which of its tokens stood where, and blocks of
  them are put together in free blocks of the cache (`turned`), named by what they are made of.
- All blocks that follow are named anew: the hash of their tokens and of *everything* before them
  as it now is, changed blocks included (`actor.sessions.block_names` states the rule). A name
  therefore says what is in a block, and no other session can ever find a block whose KV its own
  text would not have given it. As long as nothing was kept, names are vLLM's own, so sticky and
  exact sessions share their common beginnings.

The cache salt, which carries the weight version, is part of the first name, and so of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.engine import core
from vllm.v1.request import Request

from actor.engine import turned
from actor.engine.kv_events import BlocksFound
from actor.engine.names import STICKY
from actor.sessions.moved import Part, Run, Source, is_whole, parts_of, places_of, sources_of

Name = Any  # vLLM's BlockHash
Hasher = Callable[[Request], list[Name]]


@dataclass
class _Use:
    """`actor.sessions.generation.CacheUse` of one request, and how far its blocks have names."""

    name: str
    session: str = ""
    previous: str = ""
    held: int = 0
    anew: tuple[int, ...] = ()
    moves: tuple[Run, ...] | None = None
    head: bool = False
    ended: tuple[str, ...] = ()
    chains: list[Name] = field(default_factory=list)
    """What the name of the block after each block is made from."""
    moved: dict[int, tuple[Part, ...]] = field(default_factory=dict)
    """What the blocks are made of that have moved."""
    named: bool = False


_sessions: dict[str, dict[str, Request]] = {}
"""Session -> its latest requests by name. They keep their tokens and the names of their blocks."""


def install() -> None:
    """Teach vLLM of this process; requests without our entry are served as before."""
    if getattr(KVCacheManager.get_computed_blocks, "dynatok", False):
        return
    standard = core.get_request_block_hasher
    get_computed_blocks = KVCacheManager.get_computed_blocks

    def get_hasher(size: int, hash_function: Callable[[Any], bytes]) -> Hasher:
        hash_blocks = standard(size, hash_function)

        def hasher(request: Request) -> list[Name]:
            use = _use(request)
            if use is None or not use.session:
                return hash_blocks(request)
            # Nothing is named until the request is given its blocks.
            return _extend(request, use, size, hash_function) if use.named else []

        # The manager below needs both, and shares nothing else with the hasher.
        KVCacheManager.dynatok_hashing = (size, hash_function)
        return hasher

    def found_blocks(self: KVCacheManager, request: Request) -> Any:
        use = _use(request)
        if use is None:
            return get_computed_blocks(self, request)
        kept = _assign(self, request, use, *self.dynatok_hashing) if use.session else []
        events = self.block_pool.kv_event_queue
        at = len(events)
        result = get_computed_blocks(self, request)
        if self.enable_kv_cache_events:
            blocks = result[1] // self.block_pool.hash_block_size
            moved = {j: turned.said(use.moved[j]) for j in kept if j in use.moved}
            event = BlocksFound(
                use.name, request.num_tokens, request.num_preemptions, blocks, kept, moved
            )
            events.insert(at, event)  # ahead of vLLM's own report of these blocks
        return result

    def blocks_in_use(self: core.EngineCore) -> tuple[int, int]:
        """Cache blocks that requests hold, and sticky sessions that are remembered."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - pool.get_num_free_blocks(), len(_sessions)

    found_blocks.dynatok = True  # type: ignore[attr-defined]
    core.EngineCore.dynatok_blocks_in_use = blocks_in_use
    core.get_request_block_hasher = get_hasher
    turned.install()
    KVCacheManager.get_computed_blocks = found_blocks


def _use(request: Request) -> _Use | None:
    """Our entry of the request, read once."""
    use: _Use | None = getattr(request, "dynatok_use", None)
    if use is None:
        params = request.sampling_params
        entry = (params.extra_args or {}).get(STICKY) if params is not None else None
        if entry is not None:
            use = request.dynatok_use = _Use(**entry)
    return use


def _assign(
    manager: KVCacheManager, request: Request, use: _Use, size: int, hash_function: Any
) -> list[int]:
    """Name the request's full blocks; the indices of those kept on a changed beginning."""
    old, held, moves = _kept_from(request, use)
    old_names, old_chains, old_moved = [], [], {}
    sources: list[tuple[Source, ...]] = []
    if old is not None:
        old_names, old_chains = old.block_hashes, old.dynatok_use.chains
        old_moved = old.dynatok_use.moved
        sources = _sources(old, min(held // size, len(old_names)), request, use, moves, size)

    def of_block(block: int) -> tuple[Part, ...]:
        return old_moved.get(block) or (Part(old_names[block], 0, size, 0),)

    cached = manager.block_pool.get_cached_block
    last = (request.num_tokens - 1) // size  # vLLM always computes the last token
    names: list[Name] = []
    chains: list[Name] = []
    kept: list[int] = []
    moved: dict[int, tuple[Part, ...]] = {}
    chain = None
    searching = as_before = True
    # Nothing that was found may be evicted for what is put together.
    with turned.Room(manager, moves is not None) as room:
        for j in range(request.num_tokens // size):
            start, stop = j * size, (j + 1) * size
            source = sources[j] if j < len(sources) else ()
            as_before = as_before and source == (Source(j, 0, size, 0),)
            if as_before and old_chains[j] == old_names[j]:
                name = fresh = old_names[j]
            else:
                name = fresh = _hash(request, hash_function, chain, start, stop)
            searching = searching and j < last
            if searching:
                parts = parts_of(source, of_block)
                before = turned.name_of(parts, size, hash_function) if parts else fresh
                if cached(before, [0]) or room.put(before, parts, source, old_names, stop):
                    name = before
                    if parts and not is_whole(parts, size):
                        moved[j] = parts
                elif not cached(fresh, [0]):
                    searching = False
            if searching:
                room.hold(name)
            if name == fresh:
                chain = name
            else:
                kept.append(j)
                chain = hash_function((chain, b"kept", name))
            as_before = as_before and name == old_names[j]
            names.append(name)
            chains.append(chain)
    request.block_hashes[:] = names
    use.chains, use.moved, use.named = chains, moved, True
    return kept


def _sources(
    old: Request, held: int, request: Request, use: _Use, moves: Sequence[Run] | None, size: int
) -> list[tuple[Source, ...]]:
    """Where each block may be taken from, of the `held` blocks of `old`.

    Compared token by token: a name is only ever asked for where it is right.
    """
    mine, theirs = request._all_token_ids, old._all_token_ids
    if moves is None:
        anew = () if old is request else use.anew
        return [
            (Source(j, 0, size, 0),)
            if j not in anew
            and theirs[j * size : (j + 1) * size] == mine[j * size : (j + 1) * size]
            else ()
            for j in range(min(held, len(mine) // size))
        ]
    out = sources_of(places_of(moves, len(mine), held * size), size)
    for j, sources in enumerate(out):
        at = j * size
        for block, start, stop, _ in sources:
            low = block * size
            if theirs[low + start : low + stop] != mine[at : at + stop - start]:
                out[j] = ()
            at += stop - start
    return out


def _kept_from(request: Request, use: _Use) -> tuple[Request | None, int, Sequence[Run] | None]:
    """The request whose blocks this one keeps, how many of its tokens count, and what has moved."""
    if use.named:
        if request.num_preemptions:  # what it held itself
            return request, request.num_tokens, None
    else:
        for session in use.ended:
            _sessions.pop(session, None)
        if not use.head:
            latest = _sessions.get(use.session, {})
            _sessions[use.session] = {
                name: one for name, one in latest.items() if name == use.previous
            } | {use.name: request}
    previous = _sessions.get(use.session, {}).get(use.previous)
    if previous is None or previous.cache_salt != request.cache_salt:
        return None, 0, None
    return previous, use.held, use.moves


def _extend(request: Request, use: _Use, size: int, hash_function: Any) -> list[Name]:
    """Names of the blocks that have become full since the last call."""
    names = []
    for start in range(len(request.block_hashes) * size, request.num_tokens - size + 1, size):
        chain = use.chains[-1] if use.chains else None
        name = _hash(request, hash_function, chain, start, start + size)
        use.chains.append(name)
        names.append(name)
    return names


def _hash(request: Request, hash_function: Any, chain: Name, start: int, stop: int) -> Name:
    """vLLM's own name of a block that is computed on `chain`."""
    extra, _ = kv_cache_utils.generate_block_hash_extra_keys(request, start, stop, 0)
    tokens = request._all_token_ids[start:stop]
    return kv_cache_utils.hash_block_tokens(hash_function, chain, tokens, extra)
