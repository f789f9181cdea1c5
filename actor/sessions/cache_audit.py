"""The block audit: what was recorded of a trajectory, against the engine's own cache events.

The recorder says from the number of cached tokens which pass computed each block, and names it by
what is in it. The engine's events name each block that a request found and each that it filled.
The two must agree block by block: as many found as counted, one name of ours for one of theirs,
and every reused block filled by the pass that the record names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actor.sessions.block_names import PassBlocks
from actor.sessions.generation import Scheduled, cut_labels
from actor.sessions.moved import Part, Run, is_whole
from actor.sessions.serving import Served
from dynatok_online.policy import NOTHING, Refresh
from dynatok_online.trajectory import OUTSIDE, RESPONSE, TokenIds


@dataclass(frozen=True, slots=True)
class PassRecord:
    """A pass as it was served, or one of the pieces into which preemption cut it."""

    served: Served
    layout: tuple[int, ...]
    states: Mapping[str, str]
    fed: TokenIds
    finish_reason: str
    refresh: Refresh = NOTHING
    """What it computed anew of what it could have kept."""
    moves: tuple[Run, ...] | None = None
    """Which of its positions stood where in the pass before; None: where they stand now."""
    scheduled: Scheduled | None = None
    """What the engine's cache events say of it; None: they have not been asked."""

    @property
    def tokens(self) -> TokenIds:
        """All positions that have KV."""
        return np.append(self.fed, np.asarray(self.served.generated.token_ids[:-1], np.int32))

    def requests(self, unreported: int) -> list[tuple[str, int]]:
        """The engine requests that it took, and how many positions of each are in its events for
        sure."""
        heads = [(head.name, head.length - 1) for head in self.served.heads]
        return [*heads, (self.served.name, self.reported(unreported))]

    def reported(self, unreported: int) -> int:
        """How many positions are in the events for sure (see `generation.Engine.unreported`)."""
        return max(len(self.fed), len(self.tokens) - unreported)


def cut_at_preemptions(
    part: PassRecord, reported: Sequence[Scheduled], size: int
) -> list[PassRecord]:
    """The pass, cut wherever preemption gave it another cache; ValueError where that cannot be.

    Sticky sessions only: any other pass computes again exactly what it lost.
    """
    scheduled = _merged(reported)
    if not scheduled:
        return [part]
    generated, fed = part.served.generated, len(part.fed)
    sampled = len(generated.token_ids)
    # A cache that sampled nothing which we have makes no piece.
    cuts = [one for one in scheduled if one.tokens - fed < sampled]
    while len(cuts) > 1 and cuts[1].tokens == fed:
        del cuts[0]
    if len(cuts) == 1 and cuts[0] is scheduled[0]:
        return [replace(part, scheduled=cuts[0])]
    if part.layout[-1] != RESPONSE and len(cuts) > 1:
        raise ValueError(
            "preempted, and kept blocks were lost; a pass with text behind the response cannot be "
            "recorded as two"
        )
    out = []
    for i, one in enumerate(cuts):
        start = max(0, one.tokens - fed)
        stop = cuts[i + 1].tokens - fed if i + 1 < len(cuts) else sampled
        again = one is not scheduled[0]
        given = replace(
            generated,
            token_ids=generated.token_ids[start:stop],
            logprobs=generated.logprobs[start:stop],
            weight_labels=cut_labels(generated.weight_labels, start, stop),
        )
        if again:
            given = replace(given, num_cached_tokens=len(one.reused) * size)
        out.append(
            replace(
                part,
                served=replace(
                    part.served, generated=given, heads=() if start else part.served.heads
                ),
                fed=np.append(part.fed, np.asarray(generated.token_ids[:start], np.int32)),
                finish_reason="preempted" if i + 1 < len(cuts) else part.finish_reason,
                # What it held itself is kept as it was.
                refresh=NOTHING if start else part.refresh,
                moves=None if start else part.moves,
                scheduled=one,
            )
        )
    return out


def contradictions(
    parts: Sequence[PassRecord],
    blocks: Sequence[PassBlocks],
    reports: Mapping[str, Sequence[Scheduled]],
    size: int,
    unreported: int,
) -> list[str]:
    """Block by block: the record's names and origins against those of the engine; one per pass.

    A block that one of the `unreported` last positions of a pass filled may be missing, and another
    session of the same text may then be said to have filled it.
    """
    out = []
    unsaid: dict[tuple[int, bytes], set[int]] = {}
    filled: dict[tuple[int, bytes], set[int]] = {}
    theirs_of: dict[bytes, bytes] = {}
    for k, (part, held) in enumerate(zip(parts, blocks, strict=True)):
        one = part.scheduled
        if one is None:
            continue  # not reported, which has been counted
        for head in part.served.heads:
            for scheduled in reports.get(head.name, ()):
                _fill(filled, k, scheduled)
        for scheduled in (*reports[part.served.name], one):
            _fill(filled, k, scheduled)
        cached = part.served.generated.num_cached_tokens
        if len(one.reused) * size != cached:
            out.append(
                f"pass {k}: the engine says it reused {cached} tokens, its events "
                f"{len(one.reused) * size}"
            )
            continue
        names = one.reused + one.computed
        for j, (name, made) in enumerate(zip(names, held.parts, strict=False)):
            if made[0].origin == OUTSIDE:  # the first that held it stands for whoever computed it
                filled.setdefault((j, name), set()).add(k)

        def computed(part: Part, name: bytes, block: int) -> bool:
            """Whether the pass that the record names filled it, as far as that was said."""
            return (
                part.origin == OUTSIDE
                or part.origin in filled.get((block, name), ())
                or part.origin in unsaid.get((block, part.name), ())
            )

        for j, (mine, made) in enumerate(zip(held.names, held.parts, strict=True)):
            wrong = ""
            if j >= len(names):
                if (j + 1) * size > part.reported(unreported):
                    for rest, last in enumerate(held.names[j:], j):
                        unsaid.setdefault((rest, last), set()).add(k)
                    break
                wrong = "is not in the engine's cache events"
            elif theirs_of.setdefault(mine, names[j]) != names[j]:
                wrong = "holds other KV than recorded"
            elif is_whole(made, size):
                if not computed(made[0], names[j], j):
                    wrong = f"is recorded as pass {made[0].origin}'s, which did not compute it"
            else:
                wrong = _wrong_parts(
                    made, one.moved.get(j, ()), j * size, size, theirs_of, computed
                )
            if wrong:
                out.append(f"pass {k}: block {j} {wrong}")
                break
    return out


def _wrong_parts(
    mine: Sequence[Part],
    theirs: Sequence[Part],
    at: int,
    size: int,
    theirs_of: dict[bytes, bytes],
    computed: Callable[[Part, bytes, int], bool],
) -> str:
    """What is wrong with the parts of a block at position `at` that has moved; "" if nothing."""
    if [part[1:4] for part in mine] != [part[1:4] for part in theirs]:
        return f"is recorded as {_said(mine)}, but the engine made it of {_said(theirs)}"
    for part, their in zip(mine, theirs, strict=True):
        block = (at - part.shift) // size
        at += part.stop - part.start
        if theirs_of.setdefault(part.name, their.name) != their.name:
            return f"was made of other KV than recorded, at {part.start} .. {part.stop}"
        if not computed(part, their.name, block):
            return f"has parts of pass {part.origin}, which did not compute them"
    return ""


def _said(parts: Sequence[Part]) -> str:
    return (
        ", ".join(f"{one.start} .. {one.stop} moved by {one.shift}" for one in parts) or "no parts"
    )


def _fill(filled: dict[tuple[int, bytes], set[int]], k: int, scheduled: Scheduled) -> None:
    for j, name in enumerate(scheduled.computed, len(scheduled.reused)):
        filled.setdefault((j, name), set()).add(k)


def _merged(scheduled: Sequence[Scheduled]) -> list[Scheduled]:
    """Without the preemptions after which a request held the same KV as before."""
    out: list[Scheduled] = []
    for one in scheduled:
        if out:
            before, after = (each.reused + each.computed for each in (out[-1], one))
            both = min(len(before), len(after))
            if before[:both] == after[:both]:
                names = max(before, after, key=len)
                out[-1] = replace(out[-1], computed=names[len(out[-1].reused) :])
                continue
        out.append(one)
    return out
