"""The actor's end, in asyncio: credits, the outbox, and the learner's messages.

    channel = ActorChannel(config, run_id, "actor-0", Hello(model, block_size, pid))
    await channel.start()                       # connects, waits for Welcome
    await channel.acquire()                     # a credit: one trajectory may start
    channel.send(TrajectoryMessage(...))        # finished: uses the credit, kept until acknowledged
    channel.give_back()                         # or dropped: the credit is free again
    message = await channel.receive()           # WeightsComing | WeightsReady | Finish
    await channel.close()

A trajectory is in the outbox from `send` until the learner has stored it. After a reconnect, a
restart of the learner or a gap it is sent again; the learner drops what it has already.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from protocol.config import ProtocolConfig
from protocol.delivery.credits import Credits
from protocol.delivery.delivery import Consumed, Outbox
from protocol.run.endpoint import speaks_v6
from protocol.wire.codec import decode_actor, decode_learner, encode
from protocol.wire.envelope import Rejected, Sealer, unseal
from protocol.wire.keys import secure_client
from protocol.wire.messages import (
    Acknowledge,
    ActorMessage,
    Bye,
    Finish,
    Heartbeat,
    Hello,
    Introduce,
    LearnerMessage,
    Offsets,
    Refused,
    TrajectoryMessage,
    WeightsApplied,
    WeightsComing,
    WeightsReady,
    Welcome,
)
from protocol.wire.socket import Refusals, apply_options, new_epoch

# Plain numbers: pyzmq's enums cost more than the call they are passed to.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)


Announcement = WeightsComing | WeightsReady | Finish
"""What `receive` gives."""


class Disconnected(ConnectionError):
    """The learner did not answer for `connect_seconds`, or refused this process."""


class ActorChannel:
    """DEALER socket and two tasks. Use from one event loop, and only from there."""

    def __init__(
        self,
        config: ProtocolConfig,
        run_id: str,
        actor_id: str,
        hello: Hello,
        *,
        outbox: Outbox | None = None,
        where: Callable[[], str | None] | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """`context`: one that others of this process use, too, and that is not ended here.

        `where` gives the address at which the learner listens now; None: it does not yet.

        Without it, that is `config.endpoint`.
        """
        self.config = config
        self.outbox = Outbox(new_epoch()) if outbox is None else outbox
        self.credits = Credits()
        self.tasks = Consumed()
        """Tasks whose trajectories were journaled: an actor that starts again leaves them out."""
        self.refusals = Refusals()
        self.connected = False
        """Whether the learner has answered our last `Hello`, and is heard since."""
        self.serving = -1
        """Weight version told to the learner; follows the `WeightsApplied` that are sent."""
        for _, _, frame in self.outbox.frames():
            kept = decode_actor(unseal(frame, run_id, len(frame)).payload)
            if isinstance(kept, TrajectoryMessage):
                self.tasks.add_all(Offsets(0, kept.tasks))
        self._where = where or (lambda: config.endpoint)
        self._address: str | None = None
        self._shared = context
        self._run_id = run_id
        self._actor_id = actor_id
        self._hello = hello
        self._sealer = Sealer(run_id, actor_id)
        self.paused: str | None = None
        """Why finished trajectories wait to be written down (the disk is full), or None."""
        self._parked: deque[tuple[int, bytes, Callable[[], None]]] = deque()
        self._uncommitted = asyncio.Event()
        self._messages: deque[Announcement] = deque()
        self._changed = asyncio.Event()
        self._seen = 0
        self._learner_epoch = 0
        self._heard = 0.0
        self._progress = 0.0
        self._patience = config.resend_seconds
        """Seconds without an acknowledgement until all is sent again."""
        self._error: BaseException | None = None
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        self._unsent: deque[bytes] = deque()
        self._looking = False
        self._leaving = False
        self._beaten: Heartbeat | None = None
        self._beat_at = 0.0

    async def start(self) -> None:
        """Connect and wait for the learner. Raises `Disconnected` after `connect_seconds`,
        ValueError where the keys cannot be used."""
        self._context = self._shared or zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        apply_options(self._socket, self.config)
        self._socket.setsockopt(zmq.IPV6, int(speaks_v6(self.config.endpoint)))
        self._socket.setsockopt(
            zmq.IDENTITY, f"{self._actor_id}:{self.outbox.epoch}".encode()[:255]
        )
        try:
            if self.config.keys is not None:
                secure_client(self._socket, self.config.keys)
        except BaseException:
            self._socket.close(0)
            if self._shared is None:
                self._context.destroy(linger=0)
            raise
        self._started = True
        self._heard = self._progress = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._follow()
        self._loop.add_reader(self._socket.FD, self._on_events)
        self._tasks = [asyncio.create_task(work()) for work in (self._beat, self._sync)]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)
        try:
            await self._wait(lambda: self.connected)
        except BaseException:
            await self.close()
            raise

    @property
    def free_credits(self) -> int:
        """Trajectories that may be started now."""
        return self.credits.free(len(self.outbox))

    async def acquire(self) -> None:
        """Wait for a credit and take it. Raises `Disconnected` where the learner stays away."""
        await self._wait(lambda: self.credits.reserve(len(self.outbox)))

    def give_back(self) -> None:
        """The trajectory that was started will not be sent."""
        self.credits.give_back()
        self._changed.set()

    def send(self, message: ActorMessage, stored: Callable[[], None] = lambda: None) -> None:
        """Send a message; a trajectory uses up a credit taken with `acquire` and is kept.

        `stored` is called when the trajectory is in the outbox: at once, or, where the disk is
        full, as soon as there is room.
        """
        if isinstance(message, TrajectoryMessage):
            sequence = self.outbox.number()
            frame = self._sealer.seal(encode(message), self.outbox.epoch, sequence)
            if len(frame) > self.config.max_message_bytes:
                raise ValueError(
                    f"trajectory {message.trajectory.trajectory_id} takes {len(frame)} bytes, more "
                    f"than protocol.max_message_bytes ({self.config.max_message_bytes})"
                )
            self._parked.append((sequence, frame, stored))
            self._put_parked()
            return
        if isinstance(message, WeightsApplied):
            self.serving = message.version
        elif isinstance(message, Bye):
            self._leaving = True  # a heartbeat would bring it back as one who joins
        self._post(self._sealer.seal(encode(message), self.outbox.epoch))

    def _put_parked(self) -> None:
        # In order: while one waits for room on the disk, all behind it wait too, and keep
        # their credits, so that no more are started than can be kept.
        while self._parked:
            sequence, frame, stored = self._parked[0]
            if not len(self.outbox):
                self._progress = time.monotonic()
            try:
                self.outbox.put(self.outbox.epoch, sequence, frame)
            except OSError as error:
                self.paused = str(error)
                self.refusals.count("no_room", self.paused)
                return
            self._parked.popleft()
            self.credits.give_back()
            stored()
            if self.connected:
                self._post(frame)
        self.paused = None
        self._uncommitted.set()

    async def receive(self) -> Announcement:
        """The learner's next message, each announcement once. Raises `Disconnected`.

        Weights that were announced while nobody called, and are not the newest, are left out.
        """
        await self._wait(lambda: bool(self._messages))
        return self._messages.popleft()

    async def drain(self, timeout: float) -> int:
        """Wait until the learner has stored all; how many it has not after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wait(lambda: not self._parked and len(self.outbox) == 0)
        return len(self._parked) + len(self.outbox)

    async def close(self) -> None:
        """Stop; what was handed to the socket is sent for at most `linger_seconds`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.to_thread(self.outbox.commit)
        if self._started and not self._socket.closed:
            self._on_events()
            self._loop.remove_reader(self._socket.FD)
            self._socket.close()
            if self._shared is None:
                await asyncio.to_thread(self._context.term)

    async def _wait(self, ready: Callable[[], bool]) -> None:
        while not ready():
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def _follow(self) -> None:
        """Connect to where the learner listens: it may have moved when it was started again."""
        found = self._where()
        if found is None or found == self._address:
            return
        if self._address is not None:
            self._socket.disconnect(self._address)
        self._socket.connect(found)
        self._address, self.connected = found, False
        self._say_hello()

    def _say_hello(self) -> None:
        hello = msgspec.structs.replace(
            self._hello, streams=self.outbox.streams(), serving=self.serving
        )
        self._post(self._sealer.seal(encode(hello), self.outbox.epoch))

    def _post(self, frame: bytes) -> None:
        self._unsent.append(frame)
        if not self._looking:
            # Soon, and not only when the descriptor is ready: it tells of changes alone, and
            # any call to the socket may have taken the news of one.
            self._looking = True
            self._loop.call_soon(self._on_events)

    def _on_events(self) -> None:
        self._looking = False
        if self._socket.closed:
            return
        try:
            while (events := int(self._socket.get(_EVENTS))) & _POLLIN or (
                events & _POLLOUT and self._unsent
            ):
                if events & _POLLIN:
                    self._read(self._socket.recv(_NOBLOCK))
                if events & _POLLOUT and self._unsent:
                    self._socket.send(self._unsent[0], _NOBLOCK)
                    self._unsent.popleft()
        except zmq.Again:
            self._loop.call_later(0.01, self._on_events)
        except Exception as error:  # given to whoever waits
            self._error = error
        self._changed.set()

    def _read(self, frame: bytes) -> None:
        try:
            envelope = unseal(frame, self._run_id, self.config.max_message_bytes)
            message = decode_learner(envelope.payload)
        except Rejected as rejected:
            self.refusals.add(rejected)
            return
        self._heard = time.monotonic()
        if envelope.epoch != self._learner_epoch:
            self._learner_epoch, self._seen = envelope.epoch, 0
        self._handle(message, envelope.sequence)

    def _handle(self, message: LearnerMessage, number: int) -> None:
        if isinstance(message, Acknowledge):
            self.credits.granted = message.credits
            if self.outbox.acknowledge(message.epoch, message.sequence):
                self._progress = time.monotonic()
                self._patience = self.config.resend_seconds
            if message.resend:
                self._resend(message.epoch, message.sequence)
        elif isinstance(message, Welcome):
            self.connected = True
            self.credits.granted = message.credits
            self.tasks.add_all(message.tasks)
            self.outbox.acknowledge(self.outbox.epoch, message.acknowledged)
            self._resend()
        elif isinstance(message, WeightsReady | Finish):
            if number == 0 or number > self._seen:
                self._seen = max(self._seen, number)
                if isinstance(message, WeightsReady):
                    self._forget_weights()
                self._messages.append(message)
        elif isinstance(message, WeightsComing):
            self._messages.append(message)
        elif isinstance(message, Introduce):
            self.connected = False
            if not self._leaving:
                self._say_hello()
        else:
            assert isinstance(message, Refused)
            self._fail(f"the learner refused actor '{self._actor_id}': {message.reason}")

    def _forget_weights(self) -> None:
        # Newer ones are there: fetching each in turn would only leave this actor further behind.
        others = [one for one in self._messages if not isinstance(one, WeightsReady)]
        self._messages = deque(others)

    def _resend(self, epoch: int | None = None, after: int = 0) -> None:
        self._progress = time.monotonic()
        for _, _, frame in self.outbox.frames(epoch, after):
            self._post(frame)

    async def _beat(self) -> None:
        # A thousand actors that say every second that nothing has changed cost the learner more
        # than their trajectories.
        quiet = self.config.dead_after_seconds / 8
        while True:
            await asyncio.sleep(self.config.heartbeat_seconds)
            self._follow()
            now = time.monotonic()
            silent = now - self._heard
            if silent > self.config.connect_seconds:
                where = self._address or "no known address"
                self._fail(
                    f"no answer from the learner at {where} for {silent:.0f} s; "
                    "is it running, with the same run id and keys?"
                )
            if silent > self.config.dead_after_seconds:
                self.connected = False
            if self._parked:
                self._put_parked()
            if self._leaving:
                continue
            if self.connected:
                beat = Heartbeat(seen=self._seen, serving=self.serving)
                if beat != self._beaten or now - self._beat_at > quiet:
                    self._beaten, self._beat_at = beat, now
                    self._post(self._sealer.seal(encode(beat), self.outbox.epoch))
                if len(self.outbox) and now - self._progress > self._patience:
                    # A learner that is only slow must not get everything again and again.
                    self._patience *= 2
                    self._resend()
            elif self._learner_epoch:
                self._say_hello()

    async def _sync(self) -> None:
        # One fsync for all that was put while the one before ran. Sending does not wait for it:
        # the frame is in the kernel's hands, so only a crash of the machine could lose it.
        while True:
            await self._uncommitted.wait()
            self._uncommitted.clear()
            await asyncio.to_thread(self.outbox.commit)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._changed.set()

    def _fail(self, reason: str) -> None:
        self._error = Disconnected(reason)
        self._changed.set()
