"""Optimizer steps as a rank gets them: rank 0 takes and deals, the others receive."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from dynatok_online.training.collator import TrajectoryCollator
from learner.online.group import End, Group
from learner.online.shares import Batch, Share, pack, share_out, unpack
from learner.online.stream import Batches


class Step(NamedTuple):
    """What one rank does in one optimizer step."""

    batches: list[Batch]
    """One a micro step."""
    loss_tokens: int
    """Of the whole step, over all ranks."""
    newest: int
    """The weight version that was published last."""


class Steps(Protocol):
    """Where the steps of a rank come from."""

    save_at_end: bool
    """Once there are no more: whether what was trained is saved."""

    def next(self) -> Step | None:
        """The next one; None: there are no more."""


class Dealer:
    """Rank 0: a batch from the stream, planned, and each rank's rows handed to it."""

    def __init__(
        self,
        batches: Batches,
        group: Group,
        collator: TrajectoryCollator,
        accumulated: int,
        save_at_end: bool,
    ) -> None:
        """`accumulated`: micro steps of an optimizer step."""
        self._batches = batches
        self._group = group
        self._collator = collator
        self._accumulated = accumulated
        self.save_at_end = save_at_end
        self._first = True

    def next(self) -> Step | None:
        """Waits for the batch. Raises what `Batches.take` raises."""
        trajectories = self._batches.take()
        if trajectories is None:
            self._group.tell(End(self.save_at_end))
            return None
        per_rank, total = share_out(
            trajectories, self._collator, self._group.ranks, self._accumulated, self._first
        )
        self._first = False
        newest = self._batches.newest
        others = [pack(batches, total, newest) for batches in per_rank[1:]]
        self._group.hand_out([Share([], total), *others])
        return Step(per_rank[0], total, newest)


class Receiver:
    """Another rank."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.save_at_end = False

    def next(self) -> Step | None:
        """Waits for rank 0."""
        message = self._group.hear(Share, End)
        if isinstance(message, Share):
            return Step(unpack(message), message.loss_tokens, message.newest)
        assert isinstance(message, End)
        self.save_at_end = message.save
        return None
