"""The two ends of a weight transport, and what travels between them.

Tensors travel as raw bytes with a safetensors dtype name and a shape, so nothing here needs
torch: a torch tensor becomes bytes through ``tensor.contiguous().view(torch.uint8).numpy()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from protocol.wire.messages import Canary, WeightManifest, WeightsComing


class Tensor(NamedTuple):
    """One tensor as bytes: `data` is a contiguous buffer of `nbytes(dtype, shape)` bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class WeightsError(ValueError):
    """A set of weights that must not be used, and why."""


class NoFreeSlot(RuntimeError):
    """Every buffer is still being read: publish later."""


class Progress:
    """How far a fetch has come: counted by the thread that fetches, watched by another."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Bytes received and bytes hashed so far."""
        self._cancelled: str | None = None

    def add(self, nbytes: int) -> None:
        """So many more. Raises `WeightsError` once the fetch was cancelled."""
        self.nbytes += nbytes
        if self._cancelled is not None:
            raise WeightsError(self._cancelled)

    def cancel(self, reason: str) -> None:
        """Let the fetch end at its next bytes."""
        self._cancelled = reason


class WeightSender(ABC):
    """The learner's end of a weight transport."""

    failure: BaseException | None = None
    """What ended a thread of the sender; it sends nothing any more."""

    @abstractmethod
    def publish(
        self,
        version: int,
        tensors: Iterable[tuple[str, Tensor]],
        canary: Canary,
        readers: Iterable[str] = (),
        coming: Callable[[WeightsComing], None] = lambda coming: None,
    ) -> WeightManifest:
        """Write a complete set, then describe it. `tensors` is consumed one at a time.

        `readers` will be told of it: asked for once it is written, so that those who joined
        meanwhile are among them. `coming` is called before the first byte, by transports whose
        readers can look on. Raises `NoFreeSlot` while readers need every buffer.
        """

    def wait_free(self, timeout: float) -> None:  # noqa: B027 (some are never full)
        """Wait until a version can be published. Raises `NoFreeSlot` after `timeout` seconds."""

    def newest(self, name: str) -> memoryview | None:
        """The bytes of a tensor in the newest version, while they are kept and no longer."""
        return None

    def holds(self, version: int) -> bool:
        """Whether a version can be read still, where it may be replaced while readers want it."""
        return True

    @abstractmethod
    def joined(self, reader: str) -> None:
        """A reader came late and is told of the latest version."""

    @abstractmethod
    def applied(self, reader: str, version: int) -> None:
        """A reader serves `version`: it may come back to that, and needs nothing older."""

    @abstractmethod
    def rejected(self, reader: str, version: int) -> None:
        """A reader will not use `version`; it keeps serving what it had."""

    @abstractmethod
    def left(self, reader: str) -> None:
        """A reader is gone and reads nothing more."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class WeightReceiver(ABC):
    """The actor's end of a weight transport."""

    @abstractmethod
    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a set, every hash checked. Raises `WeightsError`.

        Takes as long as `progress` moves; a transport that hears nothing gives up by itself.
        They may be views of a shared buffer: valid until a newer version is reported as applied,
        or this one as rejected.
        """

    def expect(self, coming: WeightsComing) -> None:  # noqa: B027 (most cannot look on)
        """A version is about to be written."""

    def serves(self, manifest: WeightManifest) -> None:  # noqa: B027 (some keep nothing)
        """This version is in service: what is older is not needed any more."""

    @abstractmethod
    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The local file with the payload, and the byte where that starts.

        For a process that maps the file itself (an engine worker), after `read` has verified it:
        tensor `t` lies at that byte plus `t.offset`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything."""
