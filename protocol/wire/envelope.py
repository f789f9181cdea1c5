"""What stands around every message: who sent it, in which run, and that it arrived whole.

A frame is a header, the run's id, the sender's id, and the payload:

    offset  bytes
    0       4      magic "DTOK"
    4       8      xxh3 of everything from offset 12 to the end
    12      1      schema major: another one is refused
    13      1      schema minor: another one is read (structs and headers only grow at the end)
    14      2      offset of the payload, so that a later minor may add header fields
    16      8      epoch: of the record for a trajectory, of the sending process otherwise
    24      8      sequence: from 1 for a trajectory, 0 for everything else
    32      8      length of the payload
    40      1      length of the run id
    41      1      length of the actor id
    42      6      zero
    48             run id, actor id (sender's, or the addressee's when the learner sends), payload

Numbers are little-endian. Every check comes before the payload is decoded.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

import xxhash

MAGIC: Final = b"DTOK"
MAJOR: Final = 1
MINOR: Final = 0
HEADER: Final = struct.Struct("<4sQBBHQQQBB6x")
_COVERED_FROM: Final = 12
_BODY: Final = struct.Struct("<BBHQQQBB6x")
_FRONT: Final = struct.Struct("<4sQ")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Buffer = bytes | bytearray | memoryview


class Rejected(ValueError):
    """A message that is not read. `cause` is one word for counters, the text is for people."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class Envelope(NamedTuple):
    """An opened frame. `payload` is a read-only view of the frame: nothing was copied."""

    run: str
    actor: str
    epoch: int
    sequence: int
    minor: int
    payload: memoryview


def check_name(what: str, name: str) -> str:
    """`name`, if it can stand in an envelope; raises ValueError otherwise."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} '{name[:120]}' must be 1 to 100 letters, digits, '.', '_' or '-', and start "
            "with a letter or digit"
        )
    return name


class Sealer:
    """Puts payloads of one run into frames for (or from) one actor."""

    def __init__(self, run: str, actor: str) -> None:
        names = check_name("run id", run).encode() + check_name("actor id", actor).encode()
        self._names = names
        self._lengths = (len(run), len(actor))
        self._start = HEADER.size + len(names)

    def seal(self, payload: bytes, epoch: int, sequence: int = 0) -> bytes:
        """The frame that carries `payload`."""
        body = b"".join(
            (
                _BODY.pack(
                    MAJOR, MINOR, self._start, epoch, sequence, len(payload), *self._lengths
                ),
                self._names,
                payload,
            )
        )
        return _FRONT.pack(MAGIC, xxhash.xxh3_64_intdigest(body)) + body


def unseal(frame: Buffer, run: str, max_bytes: int) -> Envelope:
    """Open a frame of this run. Raises `Rejected` for any other bytes."""
    view = memoryview(frame).toreadonly()
    size = view.nbytes
    if size > max_bytes:
        raise Rejected("too_large", f"{size} bytes, more than the limit of {max_bytes}")
    if size < HEADER.size:
        raise Rejected("truncated", f"{size} bytes, less than a header of {HEADER.size}")
    magic, checksum, major, minor, start, epoch, sequence, length, run_length, actor_length = (
        HEADER.unpack_from(view)
    )
    if magic != MAGIC:
        raise Rejected(
            "magic", f"starts with {magic!r} instead of {MAGIC!r}: not a DynaTok message"
        )
    if major != MAJOR:
        raise Rejected(
            "version",
            f"schema {major}.{minor}, but this process reads {MAJOR}.x; run the same release of "
            "dynatok-online on both sides",
        )
    actor_start = HEADER.size + run_length
    actor_stop = actor_start + actor_length
    if start < actor_stop or length != size - start:
        raise Rejected("length", f"says {length} bytes from {start} on, but the frame has {size}")
    if xxhash.xxh3_64_intdigest(view[_COVERED_FROM:]) != checksum:
        raise Rejected("checksum", "the checksum does not match: the bytes changed on the way")
    try:
        found, actor = (
            str(view[HEADER.size : actor_start], "ascii"),
            str(view[actor_start:actor_stop], "ascii"),
        )
    except UnicodeDecodeError as error:
        raise Rejected("name", "run or actor id is not ASCII") from error
    if found != run:
        raise Rejected("run", f"belongs to run '{found}', but this is run '{run}'")
    if not _NAME.fullmatch(actor):
        raise Rejected("name", f"actor id {actor!r} is not a name")
    return Envelope(found, actor, epoch, sequence, minor, view[start:])
