"""A set of weights as its difference to the one before: XOR, then zstd, chunk by chunk.

An optimizer step moves most weights by little, so sign, exponent and the upper bits of most of
them stay: the XOR is full of zeros. How much that saves depends on learning rate and dtype, so a
sender measures it for every version and sends the version whole where it does not pay.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protocol.weights.base import WeightsError

PAYS_BELOW: Final = 0.8
"""Share of the full size up to which a difference is sent."""
_LEVEL: Final = 1


def check_available() -> None:
    """Raise ValueError where zstd is not installed."""
    try:
        import zstandard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "learner.weight_full_every needs zstandard on both sides: pip install zstandard; or "
            "write 0 to send every version whole"
        ) from error


def difference(new: memoryview, old: memoryview) -> bytes:
    """What turns `old` into `new`; both have the same length."""
    import zstandard

    xor = np.bitwise_xor(np.frombuffer(new, np.uint8), np.frombuffer(old, np.uint8))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(xor.data)


def restore(packed: bytes, old: memoryview) -> memoryview:
    """The new bytes. Raises `WeightsError` for anything that `difference` did not make."""
    import zstandard

    try:
        xor = zstandard.ZstdDecompressor().decompress(packed, max_output_size=old.nbytes)
    except zstandard.ZstdError as error:
        raise WeightsError(f"a difference cannot be read: {error}") from error
    if len(xor) != old.nbytes:
        raise WeightsError(f"a difference of {len(xor)} bytes to {old.nbytes}")
    return np.bitwise_xor(np.frombuffer(xor, np.uint8), np.frombuffer(old, np.uint8)).data
