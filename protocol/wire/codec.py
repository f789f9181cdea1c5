"""Messages to bytes and back: typed msgpack, arrays as raw bytes, no pickle.

Decoding reads only the messages of one direction, and copies no array: a decoded array is a
read-only view of the received bytes. Before anything is built, the bytes are walked once
without allocating; a count of more than is there, or nesting too deep to walk, ends there.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from protocol.wire.envelope import Buffer, Rejected
from protocol.wire.messages import ActorMessage, LearnerMessage

ARRAY_CODES: Final[dict[str, int]] = {"<i4": 1, "<f4": 2, "<i8": 3, "<f8": 4, "|u1": 5}
"""numpy dtype -> msgpack extension code. Codes are never used again for another dtype."""

_DTYPES: Final = {code: np.dtype(name) for name, code in ARRAY_CODES.items()}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}


_VIEWED_FROM: Final = 1024
"""Elements from which a view is cheaper than a copy."""

_Ext: Final = msgspec.msgpack.Ext


def _encode_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a message cannot contain a {type(value).__name__}")
    code = _CODES.get(value.dtype)
    if code is None or value.ndim != 1:
        raise TypeError(
            f"a message contains one-dimensional arrays of {', '.join(d.name for d in _CODES)}, "
            f"not {value.dtype.name} of shape {value.shape}"
        )
    if value.size < _VIEWED_FROM:
        return _Ext(code, value.tobytes())
    data = value.data
    return _Ext(code, data if data.c_contiguous else value.tobytes())


def _decode_array(
    code: int, data: memoryview, _dtypes: Any = _DTYPES, _view: Any = np.frombuffer
) -> Any:
    # The defaults make these look-ups local: this runs once for each of a message's arrays.
    return _view(data, _dtypes[code])


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_walker: Final = msgspec.msgpack.Decoder(msgspec.Raw)
_from_actor: Final = msgspec.msgpack.Decoder(ActorMessage, ext_hook=_decode_array)
_from_learner: Final = msgspec.msgpack.Decoder(LearnerMessage, ext_hook=_decode_array)


def encode(message: ActorMessage | LearnerMessage) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_actor(payload: Buffer) -> ActorMessage:
    """The message that an actor sent. Raises `Rejected`."""
    message: ActorMessage = _decode(_from_actor, payload)
    return message


def decode_learner(payload: Buffer) -> LearnerMessage:
    """The message that the learner sent. Raises `Rejected`."""
    message: LearnerMessage = _decode(_from_learner, payload)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[Any], payload: Buffer) -> Any:
    view = memoryview(payload).toreadonly()
    try:
        # A list is allocated by its declared length, so a header that promises 4 G elements
        # would cost 32 GB. Walking first proves that every declared element is there.
        _walker.decode(view)
        return decoder.decode(view)
    except RecursionError as error:
        raise Rejected("depth", "nested too deeply") from error
    except KeyError as error:
        raise Rejected("content", f"unknown array code {error}") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise Rejected("content", f"{error}") from error
