"""What rank 0 tells the other ranks: typed bytes over gloo, on GPUs too, in an order all know.

    Begin                      once, before training: where to go on
    Fate                       before the first step: publish
    Share | End                every step: its rows, or that none come any more
    Score                      before the first step under a version: what is compared with actors
    Fate                       after it: publish, save, stop
    Goodbye                    once, after training

Nothing is pickled. A message that does not come within the deadline, or whose sender has died, is
an error where it is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist

from learner.online.shares import Share


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Where training begins."""

    checkpoint: str
    """Folder to resume from; empty: the model as it is."""
    train: bool
    """Whether anything is left to train; otherwise the weights are published, and that is all."""


class Fate(msgspec.Struct, frozen=True, tag="fate"):
    """What becomes of a step that has been made."""

    publish: bool = False
    save: bool = False
    stop: bool = False


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Rows that rank 0 is about to score with the model in training; each is a meeting."""

    rows: int


class End(msgspec.Struct, frozen=True, tag="end"):
    """No rows come any more."""

    save: bool
    """Whether what was trained is saved once more."""


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """Training is over."""

    finished: bool
    """Whether it reached its end: the model is saved."""


Message = Begin | Share | Fate | Score | End | Goodbye
M = TypeVar("M", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Processes of the learner."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Group:
    """All ranks make one, at the same time, once torch.distributed runs."""

    def __init__(self, deadline: float) -> None:
        """`deadline`: seconds until a message that does not come is an error."""
        self.rank, self.ranks = rank(), ranks()
        self._group: Any = None
        if self.ranks > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline))

    def tell(self, message: Message) -> None:
        """Rank 0: the same to every other rank."""
        self.hand_out([message] * self.ranks)

    def hand_out(self, messages: Sequence[Message]) -> None:
        """Rank 0: to every other rank its own, by number."""
        sending = []
        for other in range(1, self.ranks):
            data = torch.frombuffer(bytearray(_encoder.encode(messages[other])), dtype=torch.uint8)
            length = torch.tensor([len(data)])
            # Kept until it was sent.
            sending += [(dist.isend(one, other, group=self._group), one) for one in (length, data)]
        for work, _ in sending:
            work.wait()

    def hear(self, *kinds: type[M]) -> M:
        """Other ranks: the next message, which must be one of these."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, 0, group=self._group)
        data = torch.zeros(int(length), dtype=torch.uint8)
        dist.recv(data, 0, group=self._group)
        message = _decoder.decode(data.numpy().data)
        if not isinstance(message, kinds):
            raise RuntimeError(
                f"rank {self.rank} expected {', '.join(kind.__name__ for kind in kinds)} of rank "
                f"0, and got {type(message).__name__}: the ranks do not run the same"
            )
        return message

    def meet(self) -> None:
        """All ranks wait here for each other."""
        if self.ranks > 1:
            dist.barrier(group=self._group)
