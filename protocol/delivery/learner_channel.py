"""The learner's end: one thread owns the socket, the rest of the learner owns two queues.

    channel = LearnerChannel(config, run_id)
    channel.start()                             # binds; ValueError where the port is busy
    event = channel.receive(timeout=1.0)        # Received, or None
    channel.accept(event)                       # trained on (or dropped): its credit goes back
    channel.announce(WeightsReady(manifest))    # to every actor, and to each that joins later
    channel.close()

The thread answers `Hello`, heartbeats and trajectories by itself, so a training step that takes
minutes lets no peer look dead. A trajectory is acknowledged when it is stored: in memory, or on
disk where a `store` is given, one `commit` for all that arrived meanwhile (group commit). It
reaches `receive` exactly once and in order per actor, whatever was sent twice.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import zmq

from protocol.config import ProtocolConfig
from protocol.delivery.announcements import Announcement, Announcements
from protocol.delivery.credits import Grants
from protocol.delivery.delivery import Arrival, Receipts
from protocol.delivery.peers import Peer, PeerInfo, Peers
from protocol.delivery.received import PeerLost, Received, Store
from protocol.run.endpoint import remove_socket, speaks_v6, to_bind
from protocol.wire.codec import decode_actor, encode
from protocol.wire.envelope import Rejected, Sealer, unseal
from protocol.wire.keys import open_server
from protocol.wire.messages import (
    Acknowledge,
    Bye,
    Heartbeat,
    Hello,
    Introduce,
    LearnerMessage,
    Offsets,
    Refused,
    Skipped,
    TrajectoryMessage,
    WeightsApplied,
    Welcome,
)
from protocol.wire.socket import Refusals, apply_options, new_epoch

# Plain numbers: pyzmq's enums cost more than the call they are passed to.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_AND_MORE: Final = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_ENVELOPE: Final = 256
"""Header and names of a frame take no more."""
_BATCH: Final = 512
"""Messages read before they are committed and acknowledged together."""


class LearnerChannel:
    """ROUTER socket, its thread, and the queues to it. All public methods are thread-safe."""

    def __init__(
        self,
        config: ProtocolConfig,
        run_id: str,
        *,
        store: Store | None = None,
        receipts: Receipts | None = None,
        replay: Iterable[Received] = (),
        room: Callable[[int], int] | None = None,
        before: str | None = None,
    ) -> None:
        """`replay`: what was stored before a restart; given out again before anything new.

        `before`: where it listened before a restart; taken again where it is free.

        `room`: weight version that an actor serves -> how many trajectories may be in flight at
        it and all others, or stored; called from the channel's thread.
        """
        self.config = config
        self.endpoint = config.endpoint
        self.refusals = Refusals()
        self.stored = 0
        """Trajectories that were stored since the start."""
        self._run_id = run_id
        self._epoch = new_epoch()
        self._store = store
        self._receipts = Receipts() if receipts is None else receipts
        self._peers = Peers()
        self._grants = Grants(config.credits)
        self._room = room
        self._before = before
        self._announcements = Announcements(2 * config.heartbeat_seconds)
        self._due: dict[bytes, Peer] = {}
        """Who is to be acknowledged something."""
        self._freed = False
        """Whether somebody may have a credit now who had none."""
        self._looked_at = 0.0
        self._commands: deque[Callable[[], object]] = deque()
        self._accepts: deque[str] = deque()
        self._woken = False
        self._events: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._uncommitted: list[Received] = []
        self._stopping = False
        self._error: BaseException | None = None
        for event in replay:
            self._events.put(event)
            self._grants.stored(event.actor)
        self._thread = threading.Thread(target=self._run, name="learner-channel", daemon=True)

    # --- for the learner's own threads

    def start(self) -> None:
        """Bind and start the thread. Raises ValueError where the address cannot be bound, or the
        keys cannot be used."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        apply_options(self._socket, self.config)
        self._socket.setsockopt(zmq.IPV6, int(speaks_v6(self.config.endpoint)))
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._authenticator = open_server(
            self._context,
            self._socket,
            self.config.keys,
            self.refusals,
            self._bind,
            lambda why: (
                f"cannot listen on {self.config.endpoint}: {why}; set "
                "protocol.endpoint to a free port of this machine (port 0 picks one)"
            ),
        )
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """What it has bound; `protocol.run.endpoint.to_tell` says it to actors."""
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._thread.start()

    def _bind(self) -> None:
        *again, last = to_bind(self.config.endpoint, self.config.interface, self._before)
        for address in again:
            with contextlib.suppress(zmq.ZMQError):  # somebody else has it by now
                self._socket.bind(address)
                remove_socket(last)
                return
        self._socket.bind(last)

    def receive(self, timeout: float | None = None) -> Received | None:
        """The next message, or None after `timeout` seconds.

        Raises what stopped the channel's thread, once everything received has been given out.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            try:
                return self._events.get(timeout=max(0.0, left))
            except queue.Empty:
                if self._error is not None:
                    raise self._error from None
                if deadline is not None and time.monotonic() >= deadline:
                    return None

    def accept(self, event: Received) -> None:
        """The consumer has this trajectory (trained or dropped it): its credit goes back."""
        if isinstance(event.message, TrajectoryMessage):
            self._accepts.append(event.actor)
            self._wake()

    def send(self, actor: str, message: LearnerMessage) -> None:
        """Send to one actor; forgotten where it is not connected."""
        self._command(lambda: self._send_to(actor, message))

    def broadcast(self, message: LearnerMessage) -> None:
        """Send to every actor that is connected, once."""
        self._command(lambda: self._broadcast(message))

    def announce(self, message: Announcement) -> None:
        """Send to every actor, and to each that joins later until the next of the same type.

        Raises ValueError for one that is too long to be read.
        """
        nbytes = len(encode(message))
        if nbytes + _ENVELOPE > self.config.max_message_bytes:
            raise ValueError(
                f"its announcement takes {nbytes} bytes, more than protocol.max_message_bytes "
                f"({self.config.max_message_bytes}) allows: raise that"
            )
        self._command(lambda: self._announce(message))

    def refuse(self, actor: str, reason: str) -> None:
        """Talk to this process of an actor no more; its next one may join again."""
        self._command(lambda: self._refuse_actor(actor, reason))

    def checkpointed(self, consumed: Offsets) -> None:
        """A checkpoint that includes these records is on disk: the store may forget them."""
        store = self._store
        if store is not None:
            self._command(lambda: store.checkpointed(consumed))

    def peers(self) -> list[PeerInfo]:
        """The actors that are connected."""
        now = time.monotonic()
        return [
            PeerInfo(p.actor, p.epoch, p.serving, now - p.heard, self._grants.waiting(p.actor))
            for p in self._peers.current()
        ]

    @property
    def flying(self) -> int:
        """Trajectories that actors have leave for, and have not sent."""
        return self._grants.flying

    def close(self, timeout: float = 5.0) -> None:
        """Send what is still to be sent, then stop. Waits at most `timeout` seconds."""
        if self._thread.ident is None:
            return
        self._stopping = True
        self._wake()
        self._thread.join(timeout)

    # --- in the channel's thread

    def _command(self, command: Callable[[], object]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(OSError):  # closed meanwhile
            os.write(self._wake_in, b"\0")

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(self._wake_out, zmq.POLLIN)
            wait = int(self.config.heartbeat_seconds * 500)
            while True:
                stopping = self._stopping
                ready = dict(poller.poll(wait))
                if self._wake_out in ready:
                    os.read(self._wake_out, 65536)
                self._woken = False  # before looking: what comes later wakes again
                while self._commands:
                    self._commands.popleft()()
                while self._accepts:
                    self._accepted(self._accepts.popleft())
                if stopping:
                    break
                self._read_batch()
                self._commit()
                self._feed()
                self._acknowledge()
                self._notice_lost()
                if self._authenticator is not None:
                    self._authenticator.check()
        except (
            BaseException
        ) as error:  # raised by `receive`: the learner must not train on, hearing nobody
            self._error = error
        finally:
            os.close(self._wake_out)
            os.close(self._wake_in)
            self._socket.close()
            if self._authenticator is not None:
                self._authenticator.stop()
            self._context.destroy()
            if self.endpoint != self.config.endpoint:  # it is ours
                remove_socket(self.endpoint)

    def _read_batch(self) -> None:
        for _ in range(_BATCH):
            try:
                frames = self._socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return
            identity = frames[0]
            try:
                if len(frames) != 2:
                    raise Rejected("frames", f"{len(frames)} frames instead of 2")
                self._read(identity, frames[1])
            except Rejected as rejected:
                self.refusals.add(rejected)
                peer = self._peers.find(identity)
                # Its envelope was sound but it speaks another language: it must not wait forever.
                if peer is not None and rejected.cause in ("content", "depth"):
                    self._refuse(peer, f"a message could not be read: {rejected}")

    def _read(self, identity: bytes, frame: bytes) -> None:
        envelope = unseal(frame, self._run_id, self.config.max_message_bytes)
        message = decode_actor(envelope.payload)
        peer = self._peers.find(identity)
        if isinstance(message, Hello):
            self._hello(identity, envelope.actor, envelope.epoch, message)
            return
        if peer is None:
            sealer = Sealer(self._run_id, envelope.actor)
            self._send(identity, sealer.seal(encode(Introduce()), self._epoch))
            self.refusals.count("unknown_peer", f"actor '{envelope.actor}' did not say hello")
            return
        if envelope.actor != peer.actor or envelope.epoch > peer.epoch or peer.refused:
            raise Rejected("peer", f"actor '{envelope.actor}' is not the one that said hello")
        peer.heard = time.monotonic()
        if isinstance(message, TrajectoryMessage | Skipped):
            self._trajectory(peer, envelope.epoch, envelope.sequence, message, frame)
        elif isinstance(message, Heartbeat):
            peer.serving = message.serving
            self._later(peer, peer.epoch)
            self._announce_again(peer, message.seen)
        else:
            self._events.put(Received(peer.actor, peer.epoch, 0, message))
            if isinstance(message, WeightsApplied):
                peer.serving = message.version
                self._later(peer, peer.epoch)
            elif isinstance(message, Bye):
                self._forget(peer)

    def _hello(self, identity: bytes, actor: str, epoch: int, hello: Hello) -> None:
        peer = Peer(identity, actor, epoch, Sealer(self._run_id, actor))
        lost = self._receipts.hello(actor, epoch, hello.streams)
        if lost is None:
            self.refusals.count("old_epoch", f"actor '{actor}' epoch {epoch} was replaced")
            self._refuse(peer, "a newer process of this actor is connected")
            return
        if lost:
            self.refusals.count("forgotten", f"{lost} acknowledged trajectories of '{actor}'")
        before = self._peers.of(actor)
        if before is not None and before.identity != identity:
            self._events.put(Received(actor, before.epoch, 0, PeerLost("replaced")))
            self._forget(before)
        peer.serving = hello.serving
        self._peers.enter(peer)
        if before is None or before.epoch != epoch:
            self._grants.joined(actor)
        tasks = self._receipts.tasks_of(actor).state()
        stored = self._receipts.last(actor, epoch)
        self._send_peer(peer, Welcome(self._window(peer), stored, tasks))
        for stream in hello.streams:
            if stream.epoch != epoch:
                self._later(peer, stream.epoch)
        self._announce_again(peer, 0)
        self._events.put(Received(actor, epoch, 0, hello))

    def _trajectory(
        self,
        peer: Peer,
        epoch: int,
        sequence: int,
        message: TrajectoryMessage | Skipped,
        frame: bytes,
    ) -> None:
        verdict = self._receipts.offer(peer.actor, epoch, sequence)
        if verdict is Arrival.UNKNOWN:
            raise Rejected("old_epoch", f"actor '{peer.actor}' never named epoch {epoch}")
        if verdict is Arrival.NEW:
            index = None
            if self._store is not None:
                try:
                    index = self._store.append(frame)
                except OSError as error:
                    self.refusals.count("no_room", f"{error}")
                    return
            tasks = message.tasks if isinstance(message, TrajectoryMessage) else ()
            self._receipts.add(peer.actor, epoch, sequence, tasks)
            self._uncommitted.append(Received(peer.actor, epoch, sequence, message, index))
            if isinstance(message, TrajectoryMessage):
                self._grants.stored(peer.actor)
            else:
                self.refusals.count("skipped", f"actor '{peer.actor}': {message.reason}")
            self.stored += 1
        else:
            self.refusals.count(verdict.value, f"actor '{peer.actor}' {epoch}/{sequence}")
        now = time.monotonic()
        ask = verdict is Arrival.GAP and now - peer.gap_asked > self.config.heartbeat_seconds
        if ask:
            peer.gap_asked = now
        self._later(peer, epoch, resend=ask)

    def _commit(self) -> None:
        if not self._uncommitted:
            return
        if self._store is not None:
            self._store.commit()
        for event in self._uncommitted:
            self._events.put(event)
        self._uncommitted.clear()

    def _later(self, peer: Peer, epoch: int, resend: bool = False) -> None:
        peer.acknowledge_later(epoch, resend)
        self._due[peer.identity] = peer

    def _feed(self) -> None:
        """What has become free goes to those who wait for it."""
        if self._room is None or not self._freed:
            return
        self._freed = False
        rooms: dict[int, int] = {}

        def room(actor: str) -> int:
            peer = self._peers.of(actor)
            if peer is None or self._room is None:
                return 0
            if peer.serving not in rooms:
                rooms[peer.serving] = self._room(peer.serving)
            return rooms[peer.serving]

        for actor in self._grants.feed(room):
            peer = self._peers.of(actor)
            if peer is not None:
                self._later(peer, peer.epoch)

    def _acknowledge(self) -> None:
        due, self._due = self._due, {}
        for identity, peer in due.items():
            if self._peers.find(identity) is not peer:
                continue
            for epoch, resend in peer.take_due().items():
                stored = self._receipts.last(peer.actor, epoch)
                self._send_peer(peer, Acknowledge(stored, self._window(peer), epoch, resend))

    def _window(self, peer: Peer) -> int:
        room = None if self._room is None else self._room(peer.serving)
        peer.told = self._grants.window(peer.actor, room)
        return peer.told

    def _accepted(self, actor: str) -> None:
        self._grants.accepted(actor)
        self._freed = True
        peer = self._peers.of(actor)
        # Each would be a message of its own. Who has most of its credits hears of a few more with
        # its next trajectory or heartbeat.
        if peer is not None and self._grants.worth_telling(actor, peer.told):
            self._later(peer, peer.epoch)

    def _announce(self, message: Announcement) -> None:
        self._broadcast(message, self._announcements.add(message))

    def _broadcast(self, message: LearnerMessage, number: int = 0) -> None:
        for peer in self._peers.current():
            self._send_peer(peer, message, number)

    def _announce_again(self, peer: Peer, seen: int) -> None:
        for number, message in self._announcements.missed(seen):
            self._send_peer(peer, message, number)

    def _notice_lost(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < self.config.heartbeat_seconds / 2:
            return
        self._looked_at, self._freed = now, True  # there may be room since the last step
        for peer in self._peers.current():
            silent = now - peer.heard
            if silent > self.config.dead_after_seconds:
                self._events.put(
                    Received(peer.actor, peer.epoch, 0, PeerLost(f"silent for {silent:.0f} s"))
                )
                self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        if self._peers.leave(peer):
            self._grants.left(peer.actor)
            self._freed = True

    def _refuse(self, peer: Peer, reason: str) -> None:
        peer.refused = True
        self._send_peer(peer, Refused(reason))

    def _refuse_actor(self, actor: str, reason: str) -> None:
        peer = self._peers.of(actor)
        if peer is not None:
            self._events.put(Received(actor, peer.epoch, 0, PeerLost(f"refused: {reason}")))
            self._forget(peer)
            self._refuse(peer, reason)  # last: whoever hears of it finds it done

    def _send_to(self, actor: str, message: LearnerMessage) -> None:
        peer = self._peers.of(actor)
        if peer is not None:
            self._send_peer(peer, message)

    def _send_peer(self, peer: Peer, message: LearnerMessage, number: int = 0) -> None:
        self._send(peer.identity, peer.sealer.seal(encode(message), self._epoch, number))

    def _send(self, identity: bytes, frame: bytes) -> None:
        try:
            self._socket.send(identity, _NOBLOCK_AND_MORE)
            self._socket.send(frame, _NOBLOCK)
        except zmq.ZMQError as error:  # gone, or not reading: what matters is sent again
            self.refusals.count("unsent", f"{error}")
