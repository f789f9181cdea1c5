"""What vLLM's cache events say about each of our requests.

vLLM publishes every block that is stored over ZeroMQ, with a sequence number, and says again what
a request found in the cache when we ask it to. The sticky plugin adds one event of ours,
`BlocksFound`, where a request gets its blocks. Events wait in the socket until somebody asks about
a request, or for a second, so they cost the event loop little while tokens come.

What the socket missed is fetched from vLLM's replay socket. What that no longer has is gone for
good: all requests in flight count as lost, since any of them may lack an event, and reading goes on
behind the gap. A request that begins later reports all its blocks anew, so it can be trusted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import zmq

from actor.sessions.generation import EventsLost, Scheduled
from actor.sessions.moved import Part

DRAIN_SECONDS = 1.0
"""So long events may wait in the socket while requests come and nobody asks."""

BlockHash = bytes | int


class BlocksFound(msgspec.Struct, tag=True, gc=False):
    """A request was given its blocks; what vLLM stores for it from here on follows them."""

    name: str
    tokens: int
    """Tokens of the request at that moment."""
    preemptions: int
    """How often it had been preempted before."""
    blocks: int
    """How many blocks it found in the cache."""
    kept: list[int]
    """Which of them a sticky session kept although something before them had changed."""
    moved: dict[int, list[tuple[BlockHash, int, int, int]]] = {}
    """Of those that have moved since they were computed, what they are made of: places of a block,
    and how far they have moved."""


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """vLLM's event, as far as we need it: blocks that a request filled, or found."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """vLLM's event: a block was evicted."""

    block_hashes: list[BlockHash]


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """vLLM's event: the cache was reset."""


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[BlocksFound | BlockStored | BlockRemoved | AllBlocksCleared]


@dataclass
class _Blocks:
    """One request between two preemptions."""

    found: BlocksFound
    names: list[bytes] = field(default_factory=list)

    def add(self, event: BlockStored) -> None:
        """What it found comes first (no parent), what it fills follows on it."""
        at = 0
        if event.parent_block_hash is not None:
            parent = _name(event.parent_block_hash)
            if parent not in self.names:
                return  # a hole: it will count as not reported
            at = self.names.index(parent) + 1
        self.names[at:] = [_name(one) for one in event.block_hashes]

    def scheduled(self) -> Scheduled:
        cut = self.found.blocks
        return Scheduled(
            self.found.tokens,
            tuple(self.found.kept),
            tuple(self.names[:cut]),
            tuple(self.names[cut:]),
            {
                j: tuple(Part(_name(name), *rest) for name, *rest in parts)
                for j, parts in self.found.moved.items()
            },
        )


class KvEvents:
    """`actor.sessions.generation.CacheLog` over vLLM's event sockets."""

    def __init__(self, endpoint: str, replay_endpoint: str, *, timeout: float = 5.0) -> None:
        self.endpoints = (endpoint, replay_endpoint)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.SUB)
        self._socket.set_hwm(0)  # nothing may be dropped while nobody asks
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self._replay_socket = context.socket(zmq.DEALER)
        self._replay_socket.connect(replay_endpoint)
        self._decoder = msgspec.msgpack.Decoder(_Batch)
        self._timeout = timeout
        self._next = 0
        self._oldest = 0
        """The oldest batch that vLLM still had when something before it was missing."""
        self._reading = asyncio.Lock()
        self._requests: dict[str, list[_Blocks] | None] = {}
        """Of each expected request its blocks, or None: events are lost, perhaps some of its."""
        self._draining: asyncio.Task[None] | None = None
        self._drained = time.monotonic()
        self.replays = 0
        """How often something was missed and asked for again."""
        self.lost_batches = 0
        """Batches of events that are gone for good."""
        self.removed_blocks = 0
        """Blocks evicted so far."""

    def expect(self, name: str) -> None:
        """A request of this name is about to be submitted; until `forget`, it is recorded."""
        self._requests[name] = []
        idle = self._draining is None or self._draining.done()
        if idle and time.monotonic() - self._drained > DRAIN_SECONDS:
            self._draining = asyncio.ensure_future(self._drain())

    async def blocks_of(self, name: str, full_blocks: int) -> tuple[Scheduled, ...] | None:
        """See `generation.CacheLog`. Waits until the events of `full_blocks` blocks came."""
        begun = time.monotonic()
        wait, asked = 0.001, 0.0
        if self._draining is not None and self._draining.done():
            self._draining.result()  # raises what it failed with
        while True:
            await self._drain()
            parts = self._requests.get(name, [])
            if parts is None:
                raise EventsLost(f"{self.lost_batches} batches of vLLM's cache events are lost")
            if parts and len(parts[-1].names) >= full_blocks:
                return tuple(part.scheduled() for part in parts)
            waited = time.monotonic() - begun
            if waited > self._timeout:
                if self._oldest <= self._next:
                    return None
                async with self._reading:
                    self._lose_until(self._oldest)
                    await self._replay()
                continue
            if waited - asked > self._timeout / 8:
                asked = waited  # the last batch may be what is missing
                async with self._reading:
                    await self._replay()
            await asyncio.sleep(wait)
            wait = min(2 * wait, 0.05)

    def forget(self, names: Sequence[str]) -> None:
        """See `generation.CacheLog`."""
        for name in names:
            self._requests.pop(name, None)

    @property
    def remembered(self) -> int:
        """Requests that were not forgotten."""
        return len(self._requests)

    def close(self) -> None:
        """Close the sockets."""
        if self._draining is not None:
            self._draining.cancel()
        self._socket.close(linger=0)
        self._replay_socket.close(linger=0)

    async def _drain(self) -> None:
        """Take in all that has arrived."""
        async with self._reading:
            self._drained = time.monotonic()
            while True:
                try:
                    _, sequence, payload = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    return
                number = int.from_bytes(sequence, "big")
                if number > self._next:
                    await self._replay()
                if number >= self._next:  # not taken in by the replay
                    self._take(number, payload)

    async def _replay(self) -> None:
        """Fetch everything from the first batch that is missing on, as far as vLLM has it."""
        while self._replay_socket.poll(0):
            self._replay_socket.recv_multipart()  # the late answer to an earlier question
        self.replays += 1
        self._replay_socket.send_multipart([b"", self._next.to_bytes(8, "big")])
        deadline = time.monotonic() + self._timeout / 4
        while time.monotonic() < deadline:
            if not self._replay_socket.poll(0):
                await asyncio.sleep(0.002)
                continue
            *_, sequence, payload = self._replay_socket.recv_multipart()
            number = int.from_bytes(sequence, "big", signed=True)
            if number > self._next:
                self._oldest = number  # a hole, but the socket may have what is missing
                return
            if number < 0:
                return
            if number == self._next:
                self._take(number, payload)

    def _lose_until(self, number: int) -> None:
        """Give up on what is missing before batch `number`."""
        if number > self._next:
            self.lost_batches += number - self._next
            self._next = number
            self._requests = dict.fromkeys(self._requests)

    def _take(self, number: int, payload: bytes) -> None:
        self._lose_until(number)
        self._next = number + 1
        for event in self._decoder.decode(payload).events:
            if isinstance(event, BlocksFound):
                if (parts := self._requests.get(event.name)) is None:
                    continue  # nobody will ask, or it is lost
                if parts and parts[-1].found.preemptions == event.preemptions:
                    parts.pop()  # it was refused its blocks before, and waited
                parts.append(_Blocks(event))
            elif isinstance(event, BlockStored):
                if parts := self._requests.get(event.session_id or ""):
                    parts[-1].add(event)
            elif isinstance(event, BlockRemoved):
                self.removed_blocks += len(event.block_hashes)


def _name(block_hash: BlockHash) -> bytes:
    """vLLM can be told to publish hashes as 64-bit numbers."""
    return block_hash if isinstance(block_hash, bytes) else block_hash.to_bytes(8, "big")
