"""What the page may ask of the server. Unknown fields are refused; sizes are bounded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import msgspec

from actor.config import ReusePolicy
from dynatok_online.policy import parse_policy
from dynatok_online.prompt import Placement
from dynatok_online.requirements import refuse_code
from dynatok_online.tasks.task import SlotState

MAX_MESSAGE_BYTES = 64 * 1024
"""Longest message from a page."""

Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Name = Annotated[str, msgspec.Meta(max_length=64)]


class Hello(msgspec.Struct, tag="hello", forbid_unknown_fields=True):
    """First message of a page: the events of `session` up to `seq` it has already."""

    session: Name = ""
    seq: Annotated[int, msgspec.Meta(ge=0)] = 0


class Start(msgspec.Struct, tag="start", forbid_unknown_fields=True):
    """Write a response; a session that runs is stopped where it is."""

    template: Text
    slots: Annotated[dict[Name, SlotState], msgspec.Meta(max_length=16)]
    lanes: Annotated[tuple[ReusePolicy, ...], msgspec.Meta(min_length=1, max_length=4)] = ("exact",)
    placement: Placement = "head"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 400

    def __post_init__(self) -> None:
        for lane in self.lanes:
            parse_policy(lane, "lanes")


class Edit(msgspec.Struct, tag="edit", forbid_unknown_fields=True):
    """Change these slots now. `key` comes back with the edit, so that a page knows its own."""

    slots: Annotated[dict[Name, SlotState], msgspec.Meta(min_length=1, max_length=16)]
    key: Name = ""


class Pause(msgspec.Struct, tag="pause", forbid_unknown_fields=True):
    """Pause the session, or resume it."""

    paused: bool


class Stop(msgspec.Struct, tag="stop", forbid_unknown_fields=True):
    """End the response here."""


class Speed(msgspec.Struct, tag="speed", forbid_unknown_fields=True):
    """Write so many tokens per second; 0: as fast as the engine can."""

    tokens_per_second: Annotated[float, msgspec.Meta(ge=0, le=100_000)]


class Send(msgspec.Struct, tag="send", forbid_unknown_fields=True):
    """Send the finished session's trajectory of a lane to the learner."""

    lane: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0


class Measure(msgspec.Struct, tag="measure", forbid_unknown_fields=True):
    """Say what old KV swallowed of each edit, in the lanes that keep any."""


Request = Hello | Start | Edit | Pause | Stop | Speed | Send | Measure

_decoder = msgspec.json.Decoder(Request)


def decode(text: str | bytes, known: Collection[str | None] = ()) -> Request:
    """The request in a message. Raises ValueError that says what is wrong.

    No page may name a verifier of this machine's own code, save those `known` to be offered to it.
    """
    request: Request = _decoder.decode(text)
    if isinstance(request, Start | Edit):
        for state in request.slots.values():
            if state.requirement not in known:
                refuse_code(state.requirement)
    return request
