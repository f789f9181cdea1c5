"""Where the actor's tasks come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dynatok_online.tasks import Task

Split = Literal["train", "heldout"]


def tasks(source: str, split: Split, seed: int) -> Iterator[Task]:
    """Tasks of `source` without end. Raises ValueError for a source that does not exist."""
    if source != "tiny":
        raise ValueError(f"actor.tasks is {source!r}; write 'tiny', the embedded world")
    from dynatok_online.tiny import world

    return world.tasks(split, seed=seed)
