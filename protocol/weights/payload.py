"""How a set of weights lies in one payload, and the proof that exactly these bytes arrived.

Each tensor has its own hash, made where its bytes come from and checked where they are used; a
set is used whole or not at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import msgspec
import xxhash

from protocol.weights.base import Progress, Tensor, WeightsError
from protocol.wire.messages import TensorSpec, WeightManifest

DTYPE_BYTES: Final[dict[str, int]] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""safetensors dtype name -> bytes per element."""

ALIGN: Final = 64
"""Tensors start at multiples of this in a payload: a cache line, and every vector load."""


_CHUNK: Final = 128 * 1024
_HASHED_AT_ONCE: Final = 16 * 2**20
_THREADED_FROM: Final = 16 * 2**20


class WrongBytes(WeightsError):
    """A tensor's bytes do not match its hash."""


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor. Raises ValueError for an unknown dtype."""
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise ValueError(f"unknown dtype '{dtype}'; known are {', '.join(DTYPE_BYTES)}")
    return size * math.prod(shape)


def as_tensor(dtype: str, shape: Iterable[int], data: object) -> Tensor:
    """A tensor over any contiguous buffer (bytes, numpy array, memoryview), checked for size."""
    shape = tuple(int(n) for n in shape)
    view = memoryview(data)  # type: ignore[arg-type]
    if not view.c_contiguous:
        raise ValueError("a tensor's buffer must be contiguous; call .contiguous() first")
    if view.nbytes != nbytes(dtype, shape):
        raise ValueError(
            f"{view.nbytes} bytes for a tensor of {dtype} {list(shape)}, which has "
            f"{nbytes(dtype, shape)}"
        )
    flat = view.cast("B") if view.nbytes else memoryview(b"")
    return Tensor(dtype, shape, flat)


def payload_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of a payload of tensors of these dtypes and shapes, with alignment."""
    return sum(aligned(nbytes(dtype, shape)) for dtype, shape in tensors.values())


def aligned(offset: int) -> int:
    """The next multiple of `ALIGN`."""
    return -(-offset // ALIGN) * ALIGN


def check_layout(manifest: WeightManifest, limit: int) -> None:
    """Raise `WeightsError` where a manifest does not describe a sound payload.

    Names are unique, sizes follow from dtype and shape, tensors lie inside the payload and do
    not overlap, and the payload is at most `limit` bytes.
    """
    if not 0 <= manifest.nbytes <= limit:
        raise WeightsError(
            f"weights {manifest.version}: {manifest.nbytes} bytes, but there is room for {limit}"
        )
    end = 0
    names = set()
    for spec in manifest.tensors:
        where = f"weights {manifest.version}, tensor '{spec.name}'"
        if spec.name in names:
            raise WeightsError(f"{where} is listed twice")
        names.add(spec.name)
        if spec.dtype not in DTYPE_BYTES or any(n < 0 for n in spec.shape):
            raise WeightsError(f"{where} has dtype {spec.dtype}, shape {list(spec.shape)}")
        if spec.nbytes != nbytes(spec.dtype, spec.shape):
            raise WeightsError(
                f"{where} says {spec.nbytes} bytes, but {spec.dtype} {list(spec.shape)} has "
                f"{nbytes(spec.dtype, spec.shape)}"
            )
        if spec.offset < end or spec.offset + spec.nbytes > manifest.nbytes:
            raise WeightsError(
                f"{where} lies at {spec.offset} .. {spec.offset + spec.nbytes}, outside its place "
                f"in {end} .. {manifest.nbytes}"
            )
        end = spec.offset + spec.nbytes


def identify(run_id: str, manifest: WeightManifest) -> str:
    """Letters and digits that stand for exactly these bytes in this run."""
    described = msgspec.msgpack.encode((run_id, manifest.nbytes, manifest.tensors))
    return str(xxhash.xxh3_128_hexdigest(described))


def check_expected(
    manifest: WeightManifest, expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Raise `WeightsError` unless the set has exactly these names, dtypes and shapes."""
    found = {spec.name: (spec.dtype, spec.shape) for spec in manifest.tensors}
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing or extra:
        what = f"lack {_some(missing)}" if missing else f"have unknown {_some(extra)}"
        raise WeightsError(f"weights {manifest.version} {what}")
    for name, is_now in found.items():
        if is_now != expected[name]:
            raise WeightsError(
                f"weights {manifest.version}, tensor '{name}' is {is_now[0]} {list(is_now[1])}, "
                f"but the model has {expected[name][0]} {list(expected[name][1])}"
            )


def slice_verified(
    manifest: WeightManifest,
    payload: memoryview,
    *,
    verify: bool = True,
    known: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Views of a payload's tensors, after `check_layout`. Raises `WrongBytes` on a wrong hash.

    `known`: hashes of tensors that were taken from this very payload before. Large sets are hashed
    by several threads: one alone does not use all of the memory's bandwidth.
    """
    out = {
        spec.name: Tensor(spec.dtype, spec.shape, payload[spec.offset : spec.offset + spec.nbytes])
        for spec in manifest.tensors
    }
    if not verify:
        return out
    known = known or {}
    unknown = [spec for spec in manifest.tensors if known.get(spec.name) != spec.xxh3]
    views = [out[spec.name].data for spec in unknown]
    nbytes_left = sum(view.nbytes for view in views)
    threads = min(4, os.cpu_count() or 1) if nbytes_left > _THREADED_FROM else 1
    hashed = partial(_hash, progress=progress or Progress())
    if threads == 1:
        hashes = [hashed(view) for view in views]
    else:
        with ThreadPoolExecutor(threads) as pool:
            hashes = list(pool.map(hashed, views))
    for spec, found in zip(unknown, hashes, strict=True):
        if found != spec.xxh3:
            raise WrongBytes(
                f"weights {manifest.version}, tensor '{spec.name}': its bytes do not match its hash"
            )
    return out


def _hash(view: memoryview, progress: Progress) -> int:
    """The hash of a tensor that may still have to come from a slow disk."""
    state = xxhash.xxh3_64()
    for at in range(0, view.nbytes, _HASHED_AT_ONCE):
        chunk = view[at : at + _HASHED_AT_ONCE]
        state.update(chunk)
        progress.add(chunk.nbytes)
    return state.intdigest()


def write_all(
    version: int,
    tensors: Iterable[tuple[str, Tensor]],
    put: Callable[[int, memoryview], None],
    room: int,
    written: Callable[[int], None] = lambda end: None,
) -> tuple[tuple[TensorSpec, ...], int]:
    """Write a set through `put(offset, bytes)`; returns what was written and the bytes it takes.

    After each tensor `written(end)` is called: everything before that byte is final. Raises
    WeightsError for a tensor that ends beyond `room` bytes, before writing it.
    """
    specs = []
    end = 0
    for name, tensor in tensors:
        offset = aligned(end)
        end = offset + tensor.data.nbytes
        if end > room:
            raise WeightsError(
                f"weights {version}: tensor '{name}' ends at byte {end}, but there is room for "
                f"{room}; size the buffers with weights.base.payload_bytes of the model"
            )
        specs.append(write_hashed(name, tensor, offset, put))
        written(end)
    return tuple(specs), end


def write_hashed(
    name: str, tensor: Tensor, offset: int, write: Callable[[int, memoryview], None]
) -> TensorSpec:
    """Give a tensor to `write(byte offset, chunk)` in chunks, and describe it for the manifest.

    Each chunk is hashed where it comes from, just before it is copied: it is then in the CPU's
    cache, and what the reader verifies is the whole way from the learner's tensor to its own.
    """
    hashed = xxhash.xxh3_64()
    for at in range(0, tensor.data.nbytes, _CHUNK):
        chunk = tensor.data[at : at + _CHUNK]
        hashed.update(chunk)
        write(offset + at, chunk)
    return TensorSpec(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        offset=offset,
        nbytes=tensor.data.nbytes,
        xxh3=hashed.intdigest(),
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def write_at(fd: int, data: memoryview, at: int) -> None:
    """All of `data` from byte `at` of a file on: the kernel may take it in parts."""
    while data.nbytes:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
