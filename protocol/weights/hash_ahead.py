"""Hashes weights while they are still being written into a ring."""

from __future__ import annotations

import threading
import time
from typing import Final

import xxhash

from protocol.weights.ring import Ring
from protocol.wire.messages import TensorSpec, WeightManifest, WeightsComing

_WAIT_SECONDS: Final = 30.0
"""So long a thread waits for bytes that do not come."""


class HashAhead:
    """Hashes what the learner writes, right behind it: when the manifest comes, little is left.

    The layout is that of the version before; where it turns out to be another one, or the bytes
    were not yet the final ones, the tensor is hashed again when it is read.
    """

    def __init__(self, ring: Ring, coming: WeightsComing, layout: tuple[TensorSpec, ...]) -> None:
        self._ring = ring
        self._coming = coming
        self._layout = layout
        self._hashes: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hash-ahead", daemon=True)
        if 0 <= coming.slot < ring.slots:
            self._thread.start()

    def result(self, ring: Ring, manifest: WeightManifest) -> dict[str, int]:
        """Tensor name -> hash, of those that lie where they were expected.

        A version that is complete ends the thread; one that was never completed, because its
        writer died, is not waited for.
        """
        same = ring is self._ring and manifest.slot == self._coming.slot
        if not same or manifest.version != self._coming.version:
            self.stop()
            return {}
        if self._thread.ident is not None:
            self._thread.join()
        places = {spec.name: (spec.offset, spec.nbytes) for spec in self._layout}
        return {
            spec.name: self._hashes[spec.name]
            for spec in manifest.tensors
            if spec.name in self._hashes and places[spec.name] == (spec.offset, spec.nbytes)
        }

    def stop(self) -> None:
        """End the thread soon: its version is not wanted any more."""
        self._stopped.set()

    def _run(self) -> None:
        ring, slot = self._ring, self._coming.slot
        if not self._layout or self._layout[-1].offset + self._layout[-1].nbytes > ring.slot_bytes:
            return
        payload = ring.payload(slot, ring.slot_bytes)
        deadline = time.monotonic() + _WAIT_SECONDS
        for spec in self._layout:
            end = spec.offset + spec.nbytes
            while True:
                complete, writing, written = ring.state(slot)
                if complete == self._coming.version or (
                    writing == self._coming.version and written >= end
                ):
                    break
                if time.monotonic() > deadline or max(complete, writing) > self._coming.version:
                    return
                if self._stopped.wait(0.0005):
                    return
            self._hashes[spec.name] = xxhash.xxh3_64_intdigest(payload[spec.offset : end])
