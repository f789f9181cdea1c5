"""Settings of the demo. Importing this pulls in neither torch nor vllm."""

from __future__ import annotations

from typing import Any

import msgspec

from actor.config import DraftsConfig, ReusePolicy, SamplingConfig, check_drafts
from dynatok_online.policy import parse_policy
from dynatok_online.prompt import Placement
from dynatok_online.tasks.task import SlotState, Task
from dynatok_online.tiny import topics

MOST_LANES = 4


class DemoConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The page and its engine."""

    model: str = "tiny"
    """`tiny` (the embedded model), a folder, or a name on the model hub."""
    port: int = 8790
    """Port of the page on loopback; 0: any free one."""
    hosts: tuple[str, ...] = ()
    """Names besides this machine's own loopback by which browsers reach the page, where a proxy
    stands between: `node7` or `node7:8080`."""
    template: str
    """The prompt to begin with, slots in double braces."""
    chat: bool = False
    """Whether the prompt is a user's message, put into the model's own chat template."""
    system_prompt: str = ""
    """Opens the chat; empty: none."""
    chat_template_kwargs: dict[str, Any] = {}
    """Options of the chat template (`enable_thinking: false`)."""
    slots: dict[str, SlotState]
    """What stands in the slots to begin with."""
    choices: dict[str, tuple[SlotState, ...]] = {}
    """What the page offers for a slot, in words that the model was taught; a slot that is not named
    here: every known requirement of its kind, in words of our own."""
    slot_width: int = 0
    """Tokens that every slot takes, in every lane, shorter texts filled up, so that an edit moves
    nothing behind it. 0: in sticky lanes as many as may be expected, elsewhere as they come."""
    lanes: tuple[ReusePolicy, ...] = ("exact",)
    """Reuse policies that write side by side: `exact`, `sticky`, `refresh:64` (sticky, but the last
    64 tokens are computed anew), `turned` (sticky, whose slots may grow and shrink), `none` (start
    over)."""
    placement: Placement = "head"
    """Where the slots stand: where the template says, or `late`, after the response."""
    max_tokens: int = 400
    """Longest response."""
    seed: int = 0
    """Chooses the draws; the same in every lane."""
    tokens_per_second: float = 25.0
    """How fast a response is written; 0: as fast as the engine can."""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn."""
    drafts: DraftsConfig = DraftsConfig()
    """Guesses of the next tokens, checked several at a time; off: `tokens: 0`."""
    engine: dict[str, Any] = {}
    """vLLM's engine arguments, passed through."""
    environment: dict[str, str] = {}
    """Environment variables of the engine."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port is {self.port}; write 0 (any free one) to 65535")
        for host in self.hosts:
            if not host or set(host) & set("/*@ "):
                raise ValueError(
                    f"hosts holds {host!r}; write names as in a browser's address, with or without "
                    "a port: node7 or node7:8080"
                )
        if self.tokens_per_second < 0:
            raise ValueError(
                f"tokens_per_second is {self.tokens_per_second}; write 0 (full speed) or more"
            )
        if not 1 <= len(set(self.lanes)) == len(self.lanes) <= MOST_LANES:
            raise ValueError(f"lanes is {list(self.lanes)}; name one to four, each once")
        check_drafts(self.drafts, self.sampling, self.engine)
        for lane in self.lanes:
            parse_policy(lane, "lanes")
        for name, offered in self.choices.items():
            if name not in self.slots:
                raise ValueError(
                    f"choices holds {name!r}, which is no slot; the slots are "
                    f"{', '.join(self.slots) or 'none'}"
                )
            if len({state.text for state in offered}) != len(offered):
                raise ValueError(f"choices.{name} holds a text twice; give each its own")
        named = self.named_requirements()
        if self.model == "tiny" or named & topics.WORD_LISTS.keys():
            topics.register()
        Task("demo", self.template, self.slots, max_tokens=self.max_tokens)

    def named_requirements(self) -> set[str | None]:
        """Requirements of the states that are written here: pages may ask for them."""
        offered = (state for states in self.choices.values() for state in states)
        return {state.requirement for state in (*self.slots.values(), *offered)}
