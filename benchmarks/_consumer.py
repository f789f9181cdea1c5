"""A learner that trains on nothing: it takes every trajectory as soon as it is stored."""

from __future__ import annotations

import threading

from protocol.delivery.learner_channel import LearnerChannel


class Consumer:
    """A thread that accepts what arrives, until `close`."""

    def __init__(self, channel: LearnerChannel) -> None:
        self._channel = channel
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._consume, name="consumer")
        self._thread.start()

    def close(self) -> None:
        """Accept no more."""
        self._ended.set()
        self._thread.join()

    def _consume(self) -> None:
        while not self._ended.is_set():
            event = self._channel.receive(0.2)
            if event is not None:
                self._channel.accept(event)
