"""Layouts that do not hold together are refused before a byte is read."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from protocol.weights.base import WeightsError
from protocol.weights.payload import (
    as_tensor,
    check_expected,
    check_layout,
    payload_bytes,
    slice_verified,
)
from protocol.wire.messages import Canary, TensorSpec, WeightManifest

NO_CANARY = Canary((), (), 0.0)


def manifest(*specs: TensorSpec, nbytes: int = 256) -> WeightManifest:
    return WeightManifest(1, "shm", 0, nbytes, specs, NO_CANARY)


GOOD = TensorSpec("a", "F32", (2, 2), 0, 16, 0)


def test_tensors_are_bytes_of_any_shape() -> None:
    assert as_tensor("F32", (2, 2), np.ones((2, 2), np.float32)).data.nbytes == 16
    assert as_tensor("BF16", (3,), np.zeros(6, np.uint8)).shape == (3,)
    assert as_tensor("F32", (), np.ones((), np.float32)).shape == ()
    assert as_tensor("F32", (0, 4), np.zeros((0, 4), np.float32)).data.nbytes == 0
    with pytest.raises(ValueError, match="16 bytes for a tensor of F32"):
        as_tensor("F32", (3,), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        as_tensor("F32", (2,), np.zeros(4, np.float32)[::2])
    with pytest.raises(ValueError, match="unknown dtype 'pickle'"):
        as_tensor("pickle", (2,), b"12")


def test_the_payload_of_a_model_is_aligned() -> None:
    assert payload_bytes({"a": ("F32", (1,)), "b": ("BF16", (33,))}) == 64 + 128


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([GOOD, GOOD], "listed twice"),
        ([msgspec.structs.replace(GOOD, dtype="O")], "has dtype O"),
        ([msgspec.structs.replace(GOOD, shape=(-2, -2))], r"shape \[-2, -2\]"),
        ([msgspec.structs.replace(GOOD, nbytes=15)], "says 15 bytes"),
        ([msgspec.structs.replace(GOOD, shape=(2**40, 2**40))], "says 16 bytes"),
        ([msgspec.structs.replace(GOOD, offset=-1)], "outside its place"),
        ([msgspec.structs.replace(GOOD, offset=250)], "outside its place"),
        ([GOOD, msgspec.structs.replace(GOOD, name="b", offset=8)], "outside its place"),
    ],
)
def test_layouts_that_do_not_hold_together(specs: list[TensorSpec], says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        check_layout(manifest(*specs), 256)


def test_a_payload_larger_than_its_place() -> None:
    with pytest.raises(WeightsError, match="there is room for 255"):
        check_layout(manifest(GOOD), 255)
    with pytest.raises(WeightsError):
        check_layout(manifest(nbytes=-1), 255)


def test_names_dtypes_and_shapes_are_those_of_the_model() -> None:
    check_expected(manifest(GOOD), {"a": ("F32", (2, 2))})
    with pytest.raises(WeightsError, match="lack 'b'"):
        check_expected(manifest(GOOD), {"a": ("F32", (2, 2)), "b": ("F32", (1,))})
    with pytest.raises(WeightsError, match="have unknown 'a'"):
        check_expected(manifest(GOOD), {})
    with pytest.raises(WeightsError, match="but the model has BF16"):
        check_expected(manifest(GOOD), {"a": ("BF16", (2, 2))})


def test_a_wrong_hash_names_its_tensor() -> None:
    with pytest.raises(WeightsError, match="tensor 'a': its bytes do not match"):
        slice_verified(manifest(GOOD), memoryview(bytes(256)))
