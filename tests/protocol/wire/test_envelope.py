"""The frame around a message: its golden bytes, and every way to be refused."""

from __future__ import annotations

import struct

import pytest
import xxhash

from protocol.wire.envelope import HEADER, Rejected, Sealer, unseal

LIMIT = 1000
FRAME = Sealer("run", "actor-0").seal(b"payload", 7, 9)


def resealed(frame: bytes) -> bytes:
    """The frame with a checksum that fits."""
    return frame[:4] + struct.pack("<Q", xxhash.xxh3_64_intdigest(frame[12:])) + frame[12:]


def test_golden_bytes() -> None:
    assert FRAME.hex() == (
        "44544f4b"  # DTOK
        "3b111eae099e7679"  # xxh3
        "01003a00"  # 1.0, payload at 58
        "0700000000000000"
        "0900000000000000"
        "0700000000000000"
        "0307000000000000"
        "72756e6163746f722d307061796c6f6164"  # run actor-0 payload
    )


def test_round_trip_copies_nothing() -> None:
    envelope = unseal(FRAME, "run", LIMIT)
    assert envelope[:5] == ("run", "actor-0", 7, 9, 0)
    assert bytes(envelope.payload) == b"payload"
    assert envelope.payload.obj is FRAME
    assert envelope.payload.readonly


def test_a_later_minor_is_read_with_fields_we_do_not_know() -> None:
    later = bytearray(FRAME[:58] + b"new header field" + FRAME[58:])
    later[13] = 4
    later[14:16] = struct.pack("<H", 58 + 16)
    envelope = unseal(resealed(bytes(later)), "run", LIMIT)
    assert envelope.minor == 4
    assert bytes(envelope.payload) == b"payload"


def changed(at: int, value: bytes, *, seal: bool = True) -> bytes:
    frame = FRAME[:at] + value + FRAME[at + len(value) :]
    return resealed(frame) if seal else frame


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (b"", "truncated"),
        (FRAME[: HEADER.size - 1], "truncated"),
        (FRAME + b"x" * LIMIT, "too_large"),
        (b"HTTP" + FRAME[4:], "magic"),
        (changed(12, b"\x02"), "version"),
        (changed(12, b"\x00"), "version"),
        (resealed(FRAME[:-1]), "length"),
        (resealed(FRAME + b"x"), "length"),
        (changed(32, struct.pack("<Q", 10 * 2**30)), "length"),
        (changed(32, struct.pack("<Q", 2**64 - 1)), "length"),
        (changed(14, struct.pack("<H", 0)), "length"),
        (changed(14, struct.pack("<H", 65535)), "length"),
        (changed(40, b"\xff"), "length"),
        (changed(24, b"\x0a", seal=False), "checksum"),
        (changed(13, b"\x05", seal=False), "checksum"),
        (changed(60, b"X", seal=False), "checksum"),
        (Sealer("other", "actor-0").seal(b"payload", 7), "run"),
        (changed(51, b"\xff"), "name"),
        (changed(51, b"/"), "name"),
    ],
)
def test_anything_else_is_rejected_with_its_cause(frame: bytes, cause: str) -> None:
    with pytest.raises(Rejected) as caught:
        unseal(frame, "run", LIMIT)
    assert caught.value.cause == cause


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101, "ä"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        Sealer("run", name)
