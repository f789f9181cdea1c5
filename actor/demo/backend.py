"""What the page needs of whoever generates for it.

There are two: an engine of the demo's own (`own_engine`), and a running actor's (`run_socket`).
"""

from __future__ import annotations

from typing import Protocol

from actor.demo.pace import Pausable
from actor.sessions.serving import Serving
from actor.tokenizer import Tokenizer
from dynatok_online.adherence.stale import Swallowed
from dynatok_online.trajectory import Trajectory


class Backend(Protocol):
    """Who generates for the page."""

    sends: bool
    """Whether there is a learner to send trajectories to."""

    measures: bool
    """Whether it can be said what old KV swallowed of an edit: there is one model, which stays."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        ...

    @property
    def ready(self) -> bool:
        """Whether passes may start."""
        ...

    @property
    def version(self) -> int:
        """Weight version that serves; -1: none yet."""
        ...

    @property
    def pausable(self) -> Pausable | None:
        """The engine, where nobody else uses it: it can be slowed down."""
        ...

    def serving(self, lane: int) -> Serving:
        """Where the session of a lane runs."""
        ...

    async def lost(self, error: Exception) -> bool:
        """A pass failed with `error`: whether that is because the engine died."""
        ...

    async def send(self, trajectory: Trajectory) -> None:
        """Hand a trajectory to the learner of a training run; it may take a while to have room."""
        ...

    async def swallowed(self, trajectory: Trajectory) -> list[Swallowed]:
        """What old KV swallowed of each edit of a response; it may take seconds."""
        ...
