"""A set of weights as a safetensors file: the same layout for every version of a model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from protocol.weights.base import Tensor, WeightsError
from protocol.weights.payload import DTYPE_BYTES, nbytes, write_at, write_hashed
from protocol.wire.messages import TensorSpec

LENGTH: Final = struct.Struct("<Q")
"""What such a file begins with: how long its header is."""
_HEADER_LIMIT: Final = 100_000_000


class Layout:
    """Where each tensor lies. `expected`: name -> (dtype, shape) of every tensor of the model."""

    def __init__(self, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        # safetensors leaves no gaps, so the widest dtypes come first: all start aligned.
        order = sorted(expected, key=lambda name: (-DTYPE_BYTES[expected[name][0]], name))
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {}
        end = 0
        for name in order:
            dtype, shape = expected[name]
            self._offsets[name] = end
            end += nbytes(dtype, shape)
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [self._offsets[name], end],
            }
        self.nbytes = end
        """Of the tensors together."""
        self._expected = dict(expected)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(LENGTH.size + len(text)) % 64)
        self._header = LENGTH.pack(len(text)) + text
        self.start = len(self._header)
        """Byte of the file where they begin."""

    def write(
        self, fd: int, version: int, tensors: Iterable[tuple[str, Tensor]]
    ) -> tuple[TensorSpec, ...]:
        """Write a file. Raises `WeightsError` unless it has exactly the expected tensors."""
        specs = []

        def put(at: int, chunk: memoryview) -> None:
            write_at(fd, chunk, self.start + at)

        write_at(fd, memoryview(self._header), 0)
        for name, tensor in tensors:
            if self._expected.get(name) != (tensor.dtype, tensor.shape):
                raise WeightsError(
                    f"weights {version}: tensor '{name}' {tensor.dtype} {list(tensor.shape)} "
                    "is not what this transport was made for"
                )
            specs.append(write_hashed(name, tensor, self._offsets[name], put))
        if len(specs) != len(self._expected):
            raise WeightsError(f"weights {version}: {len(specs)} of {len(self._expected)} tensors")
        specs.sort(key=lambda spec: (spec.offset, spec.nbytes))
        return tuple(specs)

    def find(self, file: memoryview, name: str) -> memoryview | None:
        """A tensor's bytes in a mapped file; None: the model has none of this name."""
        if name not in self._expected:
            return None
        at = self.start + self._offsets[name]
        return file[at : at + nbytes(*self._expected[name])]


def payload_start(head: bytes, where: str) -> int:
    """The byte where the tensors begin, from a file's first bytes. Raises `WeightsError`."""
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else _HEADER_LIMIT + 1
    if length > _HEADER_LIMIT:
        raise WeightsError(f"{where} is not a safetensors file")
    return LENGTH.size + int(length)
