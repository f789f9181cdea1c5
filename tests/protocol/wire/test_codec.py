"""Messages keep their bytes, arrays are not copied, and what is not a message is refused."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest

from dynatok_online.trajectory import RESPONSE, Earlier, Edit, Pass, Reuse, Trajectory, VersionRun
from protocol.wire.codec import decode_actor, decode_learner, encode
from protocol.wire.envelope import Rejected
from protocol.wire.messages import (
    Acknowledge,
    ActorMessage,
    Backlog,
    Bye,
    Canary,
    Finish,
    Heartbeat,
    Hello,
    Introduce,
    LearnerMessage,
    Refused,
    Skipped,
    TensorSpec,
    TrajectoryMessage,
    WeightManifest,
    WeightsApplied,
    WeightsComing,
    WeightsReady,
    WeightsRejected,
    Welcome,
)

TRAJECTORY = Trajectory(
    trajectory_id="t1",
    pieces=(np.array([5, 6], np.int32), np.array([7], np.int32), np.array([8], np.int32)),
    response=np.array([1, 2, 3], np.int32),
    logprobs=np.array([-0.5, -1.0, -2.0], np.float32),
    passes=(
        Pass(
            layout=(0, 1, RESPONSE),
            states={"case": "UPPER"},
            start=0,
            stop=2,
            num_cached_tokens=0,
            weight_versions=(VersionRun(3, 2),),
            finish_reason="edit",
            scores={"case": 1.0},
        ),
        Pass(
            layout=(0, 2, RESPONSE),
            states={"case": "lower"},
            start=2,
            stop=3,
            num_cached_tokens=2,
            reuse=(Reuse(0, 0, 2),),
            weight_versions=(VersionRun(3, 1),),
        ),
    ),
    edits=(Edit("case", "lower", 1, 2, "schedule"),),
    block_size=32,
    info={"seed": "1"},
)
JUDGED = msgspec.structs.replace(
    TRAJECTORY,
    passes=(
        TRAJECTORY.passes[0],
        msgspec.structs.replace(TRAJECTORY.passes[1], earlier=(Earlier(0, 1, 0.5),)),
    ),
)
MANIFEST = WeightManifest(
    4,
    "shm",
    1,
    64,
    (TensorSpec("w", "BF16", (2, 3), 0, 12, 99),),
    Canary(((1, 2),), ((-0.5,),), 0.25),
)

# Written down once, never changed: a process of an older release must read these, and we its.
ACTOR_MESSAGES: list[tuple[ActorMessage, str]] = [
    (
        Hello("tiny", 32, 77, (Backlog(5, 2),), 3),
        "86a474797065a568656c6c6fa56d6f64656ca474696e79aa626c6f636b5f73697a6520a37069644d"
        "a773747265616d7391920502a773657276696e6703",
    ),
    (
        TrajectoryMessage(TRAJECTORY),
        "82a474797065aa7472616a6563746f7279aa7472616a6563746f727989ad7472616a6563746f7279"
        "5f6964a27431a670696563657393d7010500000006000000d60107000000d60108000000a8726573"
        "706f6e7365c70c01010000000200000003000000a86c6f6770726f6273c70c02000000bf000080bf"
        "000000c0a67061737365739289a66c61796f7574930001ffa673746174657381a463617365a55550"
        "504552a5737461727400a473746f7002b16e756d5f6361636865645f746f6b656e7300a572657573"
        "6590af7765696768745f76657273696f6e7391920302ad66696e6973685f726561736f6ea4656469"
        "74a673636f72657381a463617365cb3ff000000000000089a66c61796f7574930002ffa673746174"
        "657381a463617365a56c6f776572a5737461727402a473746f7003b16e756d5f6361636865645f74"
        "6f6b656e7302a572657573659193000002af7765696768745f76657273696f6e7391920301ad6669"
        "6e6973685f726561736f6ea473746f70a673636f72657380a565646974739185a4736c6f74a46361"
        "7365a474657874a56c6f776572ac7265717565737465645f617401ac6566666563746976655f6174"
        "02a6736f75726365a87363686564756c65a6706f6c696379a56578616374aa626c6f636b5f73697a"
        "6520a4696e666f81a473656564a131",
    ),
    (
        TrajectoryMessage(JUDGED),
        "82a474797065aa7472616a6563746f7279aa7472616a6563746f727989ad7472616a6563746f7279"
        "5f6964a27431a670696563657393d7010500000006000000d60107000000d60108000000a8726573"
        "706f6e7365c70c01010000000200000003000000a86c6f6770726f6273c70c02000000bf000080bf"
        "000000c0a67061737365739289a66c61796f7574930001ffa673746174657381a463617365a55550"
        "504552a5737461727400a473746f7002b16e756d5f6361636865645f746f6b656e7300a572657573"
        "6590af7765696768745f76657273696f6e7391920302ad66696e6973685f726561736f6ea4656469"
        "74a673636f72657381a463617365cb3ff00000000000008aa66c61796f7574930002ffa673746174"
        "657381a463617365a56c6f776572a5737461727402a473746f7003b16e756d5f6361636865645f74"
        "6f6b656e7302a572657573659193000002af7765696768745f76657273696f6e7391920301ad6669"
        "6e6973685f726561736f6ea473746f70a673636f72657380a76561726c6965729183a57374617274"
        "00a473746f7001a573636f7265cb3fe0000000000000a565646974739185a4736c6f74a463617365"
        "a474657874a56c6f776572ac7265717565737465645f617401ac6566666563746976655f617402a6"
        "736f75726365a87363686564756c65a6706f6c696379a56578616374aa626c6f636b5f73697a6520"
        "a4696e666f81a473656564a131",
    ),
    (Skipped("disk"), "82a474797065a7736b6970706564a6726561736f6ea46469736b"),
    (
        WeightsApplied(4, 0.5, 0.25, 0.0, 2),
        "86a474797065af776569676874735f6170706c696564a776657273696f6e04ad70617573655f7365"
        "636f6e6473cb3fe0000000000000ad66657463685f7365636f6e6473cb3fd0000000000000aa6361"
        "6e6172795f676170cb0000000000000000b07265737461727465645f70617373657302",
    ),
    (
        WeightsRejected(4, 3, "hash"),
        "84a474797065b0776569676874735f72656a6563746564a776657273696f6e04a773657276696e67"
        "03a6726561736f6ea468617368",
    ),
    (Heartbeat(2, 3), "83a474797065a9686561727462656174a47365656e02a773657276696e6703"),
    (Bye("done"), "82a474797065a3627965a6726561736f6ea4646f6e65"),
]
LEARNER_MESSAGES: list[tuple[LearnerMessage, str]] = [
    (Welcome(64, 9), "83a474797065a777656c636f6d65a76372656469747340ac61636b6e6f776c656467656409"),
    (
        Acknowledge(9, 60, 5, True),
        "85a474797065a361636ba873657175656e636509a7637265646974733ca565706f636805a6726573656e64c3",
    ),
    (
        WeightsReady(MANIFEST),
        "82a474797065ad776569676874735f7265616479a86d616e696665737488a776657273696f6e04a9"
        "7472616e73706f7274a373686da4736c6f7401a66e627974657340a774656e736f72739196a177a4"
        "42463136920203000c63a663616e61727983a9746f6b656e5f69647391920102a86c6f6770726f62"
        "739191cbbfe0000000000000a9746f6c6572616e6365cb3fd0000000000000a4706f727400"
        "a462617365ff",
    ),
    (
        WeightsComing(4, "shm", 1),
        "84a474797065ae776569676874735f636f6d696e67a776657273696f6e04a97472616e73706f7274a37368"
        "6da4736c6f7401",
    ),
    (Finish(4), "82a474797065a666696e697368a776657273696f6e04"),
    (Refused("old"), "82a474797065a772656675736564a6726561736f6ea36f6c64"),
    (Introduce(), "81a474797065a9696e74726f64756365"),
]


def same(one: object, other: object) -> bool:
    return bool(
        msgspec.to_builtins(one, enc_hook=np.ndarray.tolist)
        == msgspec.to_builtins(other, enc_hook=np.ndarray.tolist)
    )


@pytest.mark.parametrize(("message", "golden"), ACTOR_MESSAGES)
def test_golden_bytes_of_an_actor(message: ActorMessage, golden: str) -> None:
    assert encode(message).hex() == golden
    assert same(decode_actor(bytes.fromhex(golden)), message)


@pytest.mark.parametrize(("message", "golden"), LEARNER_MESSAGES)
def test_golden_bytes_of_the_learner(message: LearnerMessage, golden: str) -> None:
    assert encode(message).hex() == golden
    assert decode_learner(bytes.fromhex(golden)) == message


def test_fields_of_a_later_release_are_passed_over() -> None:
    later = msgspec.msgpack.encode({"type": "bye", "reason": "done", "mood": [1, {"a": None}]})
    assert decode_actor(later) == Bye("done")


def test_fields_that_an_older_release_did_not_have_get_their_defaults() -> None:
    older = msgspec.msgpack.encode({"type": "hello", "model": "tiny", "block_size": 32, "pid": 1})
    assert decode_actor(older) == Hello("tiny", 32, 1)


def test_arrays_are_views_of_what_was_received() -> None:
    frame = encode(TrajectoryMessage(TRAJECTORY))
    message = decode_actor(frame)
    assert isinstance(message, TrajectoryMessage)
    response = message.trajectory.response
    assert not response.flags.owndata
    assert not response.flags.writeable
    start = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    assert start <= response.__array_interface__["data"][0] < start + len(frame)


def test_a_writable_buffer_still_gives_read_only_arrays() -> None:
    message = decode_actor(bytearray(encode(TrajectoryMessage(TRAJECTORY))))
    assert isinstance(message, TrajectoryMessage)
    assert not message.trajectory.response.flags.writeable


def test_a_strided_array_is_sent_as_its_values() -> None:
    strided = msgspec.structs.replace(
        TRAJECTORY,
        response=np.arange(6, dtype=np.int32)[::2],
        logprobs=np.zeros(6, np.float32)[::2],
    )
    message = decode_actor(encode(TrajectoryMessage(strided)))
    assert isinstance(message, TrajectoryMessage)
    assert message.trajectory.response.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.complex64), np.zeros((2, 2), np.int32), np.zeros(2, ">i4")]
)
def test_other_arrays_cannot_be_sent(array: np.ndarray) -> None:
    broken = msgspec.structs.replace(TRAJECTORY)
    msgspec.structs.force_setattr(broken, "response", array)
    with pytest.raises(TypeError, match="one-dimensional arrays of int32"):
        encode(TrajectoryMessage(broken))


BYE = encode(Bye("done"))
INNER = encode(TrajectoryMessage(TRAJECTORY))
RESPONSE_AT = INNER.index(b"\xa8response") + 9


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "content"),
        (b"\xc0", "content"),
        (b"hello", "content"),
        (BYE[:-1], "content"),
        (BYE + b"\xc0", "content"),
        (encode(Finish(1)), "content"),  # the other direction's
        (msgspec.msgpack.encode({"type": "bye"}), "content"),
        (msgspec.msgpack.encode({"type": "bye", "reason": 1}), "content"),
        (msgspec.msgpack.encode({"type": "eval", "reason": "x"}), "content"),
        (b"\xdd\xff\xff\xff\xff" + b"\x01" * 10, "content"),  # a list of 4 G elements
        (b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * 10, "content"),  # a map of 4 G entries
        (b"\xc6\xff\xff\xff\xff", "content"),  # 4 GB of bytes
        (b"\xc9\xff\xff\xff\xff\x01", "content"),
        (b"\x91" * 100_000 + b"\x01", "depth"),
        (b"\x81\xa1a" * 100_000 + b"\x01", "depth"),
        (INNER[: RESPONSE_AT + 2] + b"\x63" + INNER[RESPONSE_AT + 3 :], "content"),
    ],
)
def test_anything_else_is_rejected_at_once(payload: bytes, cause: str) -> None:
    start = time.perf_counter()
    with pytest.raises(Rejected) as caught:
        decode_actor(payload)
    assert caught.value.cause == cause
    assert time.perf_counter() - start < 0.5


def test_a_trajectory_that_contradicts_itself_is_rejected() -> None:
    broken = msgspec.structs.replace(TRAJECTORY)
    msgspec.structs.force_setattr(broken, "logprobs", np.zeros(2, np.float32))
    with pytest.raises(Rejected, match="3 response tokens but 2 logprobs"):
        decode_actor(encode(TrajectoryMessage(broken)))
