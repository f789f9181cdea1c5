"""New weights out to the actors: numbered, hashed, with a canary, and never over what is read.

Versions count up from 0, and a number is used once: the canary and the bytes that were sent belong
to the same weights in training. Tensors go into the transport one by one, and nothing of them is
kept here. Publishing does not wait for a slow actor; the next step tries again, and only the last
version insists.

Every rank publishes at the same time: under ZeRO-3 gathering and the canary's forward are meetings.
Rank 0 alone has a transport; the others ask for the canary, too, and `take_all` that they gather.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import numpy as np
import torch

from learner.log import say
from protocol.weights.base import NoFreeSlot, Tensor, WeightSender
from protocol.weights.payload import DTYPE_BYTES, as_tensor
from protocol.wire.messages import Canary, WeightManifest, WeightsComing

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
FEW = 0.01
"""Share of the trained elements: where fewer of them have changed as published, small updates are
lost in rounding."""

Named = tuple[str, torch.Tensor]


class Publisher:
    """Publishes what `gather` yields. One thread calls it."""

    def __init__(
        self,
        *,
        sender: WeightSender,
        canary: Callable[[], Canary],
        gather: Callable[[], Iterator[Named]],
        trained: Iterable[str],
        readers: Callable[[], Iterable[str]],
        announce: Callable[[WeightManifest], None],
        published: Callable[[int], None],
        version: int = -1,
        coming: Callable[[WeightsComing], None] = lambda coming: None,
        adapter_rank: int = 0,
    ) -> None:
        """`trained`: names of the tensors that training changes. `version`: the newest one that was
        ever published in this run. `coming`: told of each before it is written. `adapter_rank`:
        see `WeightManifest`."""
        self._adapter_rank = adapter_rank
        self._coming = coming
        self._sender = sender
        self._canary = canary
        self._gather = gather
        self._trained = frozenset(trained)
        self._readers = readers
        self._announce = announce
        self._published = published
        self.version = version
        """The newest published version; -1: none yet."""
        self.postponed = 0
        """How often every buffer was still being read."""
        self.obstacle = ""
        """Why the last one was postponed."""
        self.seconds = 0.0
        """Time spent publishing."""
        self.changed = -1.0
        """Share of the trained elements that differ, as published, from the version before; -1:
        there is none to compare with."""

    def ready(self, wait: float = 0.0) -> bool:
        """False: no buffer became free within `wait` seconds, and nothing can be published."""
        began = time.perf_counter()
        try:
            self._sender.wait_free(wait)
        except NoFreeSlot as error:
            return self._postpone(error)
        finally:
            self.seconds += time.perf_counter() - began
        return True

    def publish(self) -> bool:
        """Publish the weights as they are, once `ready`. False: there was no room for them."""
        began = time.perf_counter()
        try:
            manifest = self._write()
        except NoFreeSlot as error:
            return self._postpone(error)
        finally:
            self.seconds += time.perf_counter() - began
        self.version = manifest.version
        # The bookkeeping comes first: an actor may answer before the next line is reached.
        self._published(self.version)
        self._announce(manifest)
        return True

    def _postpone(self, why: NoFreeSlot) -> bool:
        self.postponed += 1
        self.obstacle = str(why)
        return False

    def _write(self) -> WeightManifest:
        canary = self._canary()
        tensors = self._gather()
        counted = _Counted(tensors, self._sender, self._trained)
        try:
            manifest = self._sender.publish(
                self.version + 1,
                iter(counted),
                canary,
                self._readers(),  # asked when all is written
                self._coming,
            )
        finally:
            take_all(tensors)  # the other ranks do, whatever happened here
        self.changed = counted.share()
        if 0 <= self.changed < FEW:
            say(
                f"weights {manifest.version}: only {self.changed:.2%} of what is trained differs "
                f"from version {self.version} once it is rounded to what is published: publish "
                "less often, raise the learning rate, or let learner.weight_dtype be float32"
            )
        return msgspec.structs.replace(
            manifest,
            changed=self.changed if self.changed >= 0 else msgspec.UNSET,
            adapter_rank=self._adapter_rank or msgspec.UNSET,
        )


class _Counted:
    """Tensors on their way into a transport, and how many of their elements are new."""

    def __init__(
        self, tensors: Iterator[Named], sender: WeightSender, trained: frozenset[str]
    ) -> None:
        self._tensors = tensors
        self._sender = sender
        self._trained = trained
        self._total = self._changed = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors:
            sent = to_bytes(tensor)
            before = self._sender.newest(name) if name in self._trained else None
            if before is not None and before.nbytes == sent.data.nbytes:
                self._total += tensor.numel()
                self._changed += _different(sent, before)
            yield name, sent

    def share(self) -> float:
        """Of the elements of trained tensors; -1: there was nothing to compare with."""
        return self._changed / self._total if self._total else -1.0


def _different(sent: Tensor, before: memoryview) -> int:
    word = np.dtype(f"u{DTYPE_BYTES[sent.dtype]}")
    return int(np.count_nonzero(np.frombuffer(sent.data, word) != np.frombuffer(before, word)))


def take_all(tensors: Iterator[Named]) -> None:
    """What is left of a stream, which under ZeRO-3 every rank must take to its end."""
    for _ in tensors:
        pass


def to_bytes(tensor: torch.Tensor) -> Tensor:
    """A CPU tensor as the bytes that travel; nothing is copied."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return as_tensor(DTYPES[tensor.dtype], tuple(tensor.shape), data)


def shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape), as a weight transport wants to know them."""
    return {name: (DTYPES[one.dtype], tuple(one.shape)) for name, one in weights.items()}
