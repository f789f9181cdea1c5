"""How long the sessions of a collector have been at something, over all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class SessionTime:
    """Adds up `seconds`, what is still going on included."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._at_it = 0
        self._since = clock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """While entered, one more session is at it."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    @property
    def seconds(self) -> float:
        """Of all sessions until now."""
        return self._seconds + self._at_it * (self._clock() - self._since)

    def _change(self, by: int) -> None:
        self._seconds, self._since = self.seconds, self._clock()
        self._at_it += by
