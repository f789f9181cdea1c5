"""Every message that crosses a process boundary.

Structs grow only at the end, with defaults. Each message is tagged with its name, so one typed
union decodes all of them, and nothing else.
"""

from __future__ import annotations

import msgspec

from dynatok_online.trajectory import Trajectory


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a weight payload: where its bytes lie and what they must hash to."""

    name: str
    dtype: str
    """safetensors dtype name: `F32`, `BF16`, `F16`, ..."""
    shape: tuple[int, ...]
    offset: int
    """Byte offset in the payload."""
    nbytes: int
    xxh3: int
    """64-bit xxh3 of the tensor's bytes."""


class Canary(msgspec.Struct, frozen=True):
    """Fixed texts and the log-probabilities that the right weights give them."""

    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    """Per text: log p(token i | tokens before it) for i = 1 .. n-1."""
    tolerance: float
    """Largest mean absolute difference over one text that still counts as equal."""


class WeightManifest(msgspec.Struct, frozen=True):
    """A complete set of weights, ready to be fetched."""

    version: int
    transport: str
    """`shm`, `folder` or `zmq`: how to fetch it. The learner chooses, the actor follows."""
    slot: int
    """Which of the sender's buffers it is in (0 where there are none)."""
    nbytes: int
    tensors: tuple[TensorSpec, ...]
    canary: Canary
    port: int = 0
    """`zmq`: where the learner's host serves the bytes. The host itself is the one that the
    actor was configured with."""
    base: int = -1
    """`zmq`: whoever has this version may ask for the difference to it (-1: there is none)."""
    changed: float | msgspec.UnsetType = msgspec.UNSET
    """Share of the trained elements that differ, as these bytes, from the version before, where
    that was counted: what is lost in rounding cannot move an engine."""
    adapter_rank: int | msgspec.UnsetType = msgspec.UNSET
    """Unset: these are the model's weights. Otherwise those of LoRA adapters of this rank, under
    peft's names and scaled already, for a model whose own weights stay as they are."""


class PlacedWeights(WeightManifest, frozen=True):
    """A manifest whose payload was fetched and verified. Stays on this machine: the place is the
    actor's own, for its engine's workers."""

    path: str = ""
    start: int = 0
    """Byte of the file where the payload begins."""


# actor -> learner


class Backlog(msgspec.Struct, frozen=True, array_like=True):
    """What is in an actor's outbox of one epoch: `first` is the oldest not acknowledged."""

    epoch: int
    first: int


class Offsets(msgspec.Struct, frozen=True, array_like=True):
    """A set of numbers that are done with: all below `low`, and those of `beyond`."""

    low: int = 0
    beyond: tuple[int, ...] = ()


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of an actor process: it can generate, and asks for credits and weights."""

    model: str
    block_size: int
    pid: int
    streams: tuple[Backlog, ...] = ()
    """What is still in its outbox, so that nothing older is waited for. Filled by the channel."""
    serving: int = -1
    """Weight version that it samples with (-1: none yet). Filled by the channel on a reconnect."""


class TrajectoryMessage(
    msgspec.Struct, frozen=True, tag="trajectory", eq=False, omit_defaults=True
):
    """A finished trajectory. Its sequence number stands in the envelope."""

    trajectory: Trajectory
    tasks: tuple[int, ...] = ()
    """Numbers of the actor's tasks that are done with it: its own, and those of responses before
    it that came to nothing. A restarted actor continues behind them."""


class Skipped(msgspec.Struct, frozen=True, tag="skipped"):
    """Stands in the place of a trajectory that the actor's disk lost; counted, never silent."""

    reason: str


class WeightsApplied(msgspec.Struct, frozen=True, tag="weights_applied"):
    """The actor now samples with `version`, and the canary agreed."""

    version: int
    pause_seconds: float
    fetch_seconds: float
    canary_gap: float
    restarted_passes: int


class WeightsRejected(msgspec.Struct, frozen=True, tag="weights_rejected"):
    """`version` was not put into service; the actor keeps `serving`."""

    version: int
    serving: int
    reason: str


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The actor is alive. Sent by its channel and answered with `Acknowledge`."""

    seen: int = 0
    """Number of the last announcement (`WeightsReady`, `Finish`) that arrived; later ones are
    announced again."""
    serving: int = -1
    """Weight version that it samples with (-1: none yet)."""


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """The actor leaves and will send nothing more."""

    reason: str


# learner -> actor


class Welcome(msgspec.Struct, frozen=True, tag="welcome", omit_defaults=True):
    """Answer to Hello (given by the channel): credits, and what is already stored."""

    credits: int
    """Trajectories that may be in flight (being generated, or sent and not yet stored)."""
    acknowledged: int
    """Highest sequence number of this actor and epoch that the learner has already (0: none)."""
    tasks: Offsets = Offsets()
    """The actor's tasks whose trajectories the learner has, or has trained on."""


class Acknowledge(msgspec.Struct, frozen=True, tag="ack"):
    """The learner has stored everything of `epoch` up to `sequence`.

    `credits` is absolute, so a lost or repeated acknowledgement does no harm: that many
    trajectories may be in flight (being generated, or sent and not yet stored).
    """

    sequence: int
    credits: int
    epoch: int = 0
    resend: bool = False
    """The one after `sequence` is missing: send everything after it again."""


class WeightsComing(msgspec.Struct, frozen=True, tag="weights_coming"):
    """New weights are about to be written: who can may look at them while they are."""

    version: int
    transport: str
    slot: int


class WeightsReady(msgspec.Struct, frozen=True, tag="weights_ready"):
    """New weights can be fetched."""

    manifest: WeightManifest


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Training is over: start nothing new; `version` is the last one published."""

    version: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The learner will not talk to this actor process."""

    reason: str


class Introduce(msgspec.Struct, frozen=True, tag="introduce"):
    """The learner does not know this peer (it was started again): send `Hello`."""


ActorMessage = (
    Hello | TrajectoryMessage | WeightsApplied | WeightsRejected | Bye | Heartbeat | Skipped
)
LearnerMessage = Welcome | Acknowledge | WeightsComing | WeightsReady | Finish | Refused | Introduce
