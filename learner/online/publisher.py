"""New weights out to the actors: numbered, hashed, with a canary, and never over what is read.

Versions count up from 0, and a number is used once: the canary, the shadow copy and the bytes
that were sent all belong to the same tensors. Publishing does not wait for a slow actor; the next
step tries again, and only the last version insists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch

from learner.online.canary import Texts, canary
from learner.online.shadow import Shadow
from protocol.weights.base import NoFreeSlot, Tensor, WeightSender
from protocol.weights.payload import as_tensor
from protocol.wire.messages import WeightManifest, WeightsComing

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Weights = Mapping[str, torch.Tensor]


class Publisher:
    """Publishes what `gather` returns. One thread calls it."""

    def __init__(
        self,
        *,
        sender: WeightSender,
        shadow: Shadow,
        texts: Texts,
        tolerance: float,
        gather: Callable[[], Weights],
        readers: Callable[[], Iterable[str]],
        announce: Callable[[WeightManifest], None],
        published: Callable[[int, Weights], None],
        version: int = -1,
        coming: Callable[[WeightsComing], None] = lambda coming: None,
        as_checkpoint: Callable[[Weights], Weights] = lambda weights: weights,
    ) -> None:
        """`version`: the newest one that was ever published in this run. `coming`: told of each
        before it is written. `as_checkpoint`: weights under the names that actors load."""
        self._as_checkpoint = as_checkpoint
        self._coming = coming
        self._sender = sender
        self._shadow = shadow
        self._texts = texts
        self._tolerance = tolerance
        self._gather = gather
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

    def ready(self, wait: float = 0.0) -> bool:
        """False: no buffer became free within `wait` seconds, and nothing can be published."""
        began = time.perf_counter()
        try:
            self._sender.wait_free(wait)
        except NoFreeSlot as error:
            self.postponed += 1
            self.obstacle = str(error)
            return False
        finally:
            self.seconds += time.perf_counter() - began
        return True

    def publish(self) -> None:
        """Publish the weights as they are, once `ready`. Under ZeRO-3 every rank gathers."""
        began = time.perf_counter()
        try:
            weights = self._gather()
            self._shadow.load(weights)
            manifest = self._sender.publish(
                self.version + 1,
                ((name, to_bytes(tensor)) for name, tensor in self._as_checkpoint(weights).items()),
                canary(self._shadow, self._texts, self._tolerance),
                self._readers(),  # asked when all is written
                self._coming,
            )
        finally:
            self.seconds += time.perf_counter() - began
        self.version = manifest.version
        # The bookkeeping comes first: an actor may answer before the next line is reached.
        self._published(self.version, weights)
        self._announce(manifest)


def to_bytes(tensor: torch.Tensor) -> Tensor:
    """A CPU tensor as the bytes that travel; nothing is copied."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return as_tensor(DTYPES[tensor.dtype], tuple(tensor.shape), data)


def shapes(weights: Weights) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape), as a weight transport wants to know them."""
    return {name: (DTYPES[one.dtype], tuple(one.shape)) for name, one in weights.items()}
