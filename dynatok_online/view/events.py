"""A response told as events: what a page folds into its picture (`page/store.js`).

A live session tells its lanes while they are written, `replay` tells a stored trajectory; both do
it through `LaneEvents`, so that one page shows either. Events are plain dicts that JSON can hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from dynatok_online.adherence.scoring import Decode
from dynatok_online.adherence.stale import Swallowed
from dynatok_online.spans.blocks import blocks, recomputed_tokens
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from dynatok_online.view.texts import TokenTexts, fed_texts
from dynatok_online.view.verdicts import verdict

Event = dict[str, Any]
Emit = Callable[[Event], None]


class LaneEvents:
    """Tells one lane: what it has told so far decides what is new.

    `decode` leaves control tokens out; `control` has their names.
    """

    def __init__(
        self, decode: Decode, emit: Emit, control: Mapping[int, str] | None = None
    ) -> None:
        self._decode = decode
        self._control = control or {}
        self._emit = emit
        self._texts = TokenTexts(decode)
        self._bounds: list[tuple[int, int]] = []
        self._states: list[dict[str, SlotState]] = []
        self._verdicts: list[Event] = []
        self._ended: list[Pass] = []
        self._pieces: set[int] = set()

    @property
    def length(self) -> int:
        """How many tokens have been told."""
        return len(self._texts.ids)

    @property
    def pass_start(self) -> int:
        """Response index of the first token of the latest pass."""
        return self._bounds[-1][0]

    def begin(self, states: Mapping[str, SlotState], fed: int, version: int) -> None:
        """A pass feeds `fed` tokens. It takes the place of one that never came to its end."""
        k, start = len(self._ended), self.length
        del self._bounds[k:], self._states[k:], self._verdicts[k:]
        self._bounds.append((start, start))
        self._states.append(dict(states))
        self._verdicts.append({})
        texts = {name: state.text for name, state in states.items()}
        self._tell("pass", start=start, fed=fed, states=texts, version=version)

    def tokens(self, token_ids: Sequence[int]) -> None:
        """The latest pass has sampled these."""
        start = self.length
        texts = self._texts.extend(token_ids)
        self._bounds[-1] = (self.pass_start, self.length)
        told = {"start": start, "ids": list(token_ids), "texts": texts}
        self._emit({"type": "tokens", **told, "control": self._control_in(token_ids)})

    def cut(self, length: int, why: str) -> None:
        """What was sampled from response index `length` on does not count.

        `why`: the `engine` died, or the `record` says otherwise.
        """
        if length < self.length:
            self._texts.cut(length)
            self._bounds[-1] = (self.pass_start, length)
            self._tell("cut", start=length, why=why)

    def report(self, trajectory: Trajectory) -> None:
        """What is known of the latest pass when it has its first token."""
        k = len(self._ended)
        one = trajectory.passes[k]
        self._tell_pieces(trajectory, one)
        # What a sticky pass's heads found in the cache is known at its end.
        found = [
            ["pending" if kind == "evicted" else kind, *rest]
            for kind, *rest in blocks(trajectory, k)
        ]
        self._tell("blocks", layout=list(one.layout), cached=one.num_cached_tokens, blocks=found)

    def end(self, trajectory: Trajectory) -> None:
        """The latest pass has ended: what the engine said of it, and the verdicts."""
        k = len(self._ended)
        one = trajectory.passes[k]
        self._tell_pieces(trajectory, one)
        logprobs = trajectory.logprobs[one.start : one.stop]
        self._tell(
            "passend",
            layout=list(one.layout),
            stop=one.stop,
            cached=one.num_cached_tokens,
            computed=trajectory.kv_length(k) - one.num_cached_tokens,
            recomputed=recomputed_tokens(trajectory, k),
            finish=one.finish_reason,
            versions=[[run.version, run.length] for run in one.weight_versions],
            logprobs=[round(float(v), 4) if np.isfinite(v) else None for v in logprobs],
            blocks=[list(block) for block in blocks(trajectory, k)],
        )
        self._ended.append(one)
        self.judge()

    def judge(self, last: int = 2) -> None:
        """The verdicts of the last passes, as far as they have changed."""
        for k in range(max(0, len(self._bounds) - last), len(self._bounds)):
            if self._bounds[k][0] < self._bounds[k][1]:
                self._tell_verdict(k, verdict(self._texts, self._bounds, k, self._states[k]))

    def finish(self, trajectory: Trajectory, problems: Sequence[str] = ()) -> None:
        """The response is complete: what its record says differently is told again."""
        if len(self._bounds) > len(self._ended):
            self._tell("void")
            del self._bounds[-1], self._states[-1], self._verdicts[-1]
        self._correct(trajectory)
        self.judge(len(self._bounds))
        for k, one in enumerate(trajectory.passes):
            # Where a text is not the requirement that was scored, the score alone is known.
            if self._verdicts[k].get("scores", {}) != one.scores:
                self._tell_verdict(k, {"scores": one.scores, "units": []})
        last = trajectory.passes[-1].finish_reason if trajectory.passes else "length"
        self._emit({"type": "finished", "finish": last, "problems": list(problems)})

    def _correct(self, trajectory: Trajectory) -> None:
        """A sticky pass that was preempted is recorded as two: that is known only at the end."""
        passes = [unjudged(one) for one in trajectory.passes]
        told = [unjudged(one) for one in self._ended]
        same = [mine == theirs for mine, theirs in zip(told, passes, strict=False)]
        first = same.index(False) if False in same else len(same)
        if first == len(told) == len(passes):
            return
        starts, states = [start for start, _ in self._bounds], list(self._states)
        self.cut(passes[first].start if first < len(passes) else self.length, "record")
        del self._ended[first:]
        for k, one in enumerate(passes[first:], first):
            version = one.weight_versions[0].version if one.weight_versions else -1
            under = states[bisect_right(starts, one.start) - 1]
            self.begin(under, trajectory.fed_length(k), version)
            self.tokens(trajectory.response[one.start : one.stop].tolist())
            self.end(trajectory)

    def _tell_pieces(self, trajectory: Trajectory, one: Pass) -> None:
        """The texts of the pieces that the page does not know."""
        if self._pieces.issuperset(piece for piece in one.layout if piece != RESPONSE):
            return
        texts = fed_texts(trajectory, len(self._ended), self._decode)
        for piece, found in zip(one.layout, texts, strict=True):
            if piece != RESPONSE and piece not in self._pieces:
                self._pieces.add(piece)
                control = self._control_in(trajectory.pieces[piece].tolist())
                self._emit({"type": "piece", "piece": piece, "texts": found, "control": control})

    def _control_in(self, token_ids: Sequence[int]) -> list[tuple[int, str]]:
        """(index, name) of the control tokens among these."""
        return [(i, self._control[t]) for i, t in enumerate(token_ids) if t in self._control]

    def _tell_verdict(self, k: int, found: Event) -> None:
        if found != self._verdicts[k]:
            self._verdicts[k] = found
            self._emit({"type": "verdict", "index": k, **found})

    def _tell(self, kind: str, **what: Any) -> None:
        """An event about the latest pass."""
        self._emit({"type": kind, "index": len(self._bounds) - 1, **what})


def edit_event(number: int, before: Mapping[str, str], after: Mapping[str, SlotState]) -> Event:
    """The slots of `after` have changed; their texts were those of `before`."""
    return {
        "type": "edit",
        "edit": number,
        "slots": {
            name: {**plain_slot(state), "from": before.get(name, "")}
            for name, state in after.items()
        },
    }


def stale_event(lane: int, stretches: Sequence[Swallowed]) -> Event:
    """What old KV swallowed of each edit of a lane: (start, stop, share, nats with the KV that was
    kept, nats with a fresh prompt) of the tokens that follow it; the share may be unknown."""
    told = [
        [one.start, one.stop, *(None if x is None else round(x, 4) for x in (one.share, *one[2:]))]
        for one in stretches
    ]
    return {"type": "stale", "lane": lane, "stretches": told}


def plain_slot(state: SlotState) -> dict[str, Any]:
    """A slot's state as events hold it."""
    return {"text": state.text, "requirement": state.requirement}


def unjudged(one: Pass) -> Pass:
    """A pass as it is before anybody has judged the response."""
    return msgspec.structs.replace(one, scores={}, earlier=msgspec.UNSET)
